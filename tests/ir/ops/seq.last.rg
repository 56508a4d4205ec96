graph @valid (%x: bf16[B, T, 64], %pos: i64[B, T]) {
  %y = seq.last %x : bf16[B, L, 64]
  %at = seq.last %pos : i64[B, L]
  return %y, %at
}

// -----

graph @attention (%q: f32[B, T, 4, 8], %k: f32[B, T, 2, 8], %pos: i64[B, T]) {
  %m = state.kv %k, %k : memory<f32; k [2, 8], v [2, 8]>
  %q_last = seq.last %q : f32[B, L, 4, 8]
  %at = seq.last %pos : i64[B, L]
  %q_rope = pos.rope %q_last, %at {base = 100.0, channels = 8} : f32[B, L, 4, 8]
  %ctx = attn.attend %q_rope, %m {scale = 0.25} : f32[B, L, 4, 8]
  return %ctx
}

// -----

graph @positions_of_all (%x: f32[B, T, 4, 8], %pos: i64[B, T]) {
  %y = seq.last %x
  %z = pos.rope %y, %pos {base = 100.0, channels = 8}
  return %z
}
// ERROR: error[RG030]: pos.rope: operands run along L and T

// -----

graph @extends (%k: f32[B, T, 2, 8]) {
  %last = seq.last %k
  %m = state.kv %last, %last
  return %m
}
// ERROR: error[RG035]: state.kv: runs along L; memories are made and read along T only

// -----

graph @twice (%x: f32[B, T, 8]) {
  %y = seq.last %x
  %z = seq.last %y
  return %z
}
// ERROR: error[RG034]: seq.last: f32[B, L, 8] does not run along the tokens of a call
