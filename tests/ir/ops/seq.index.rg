graph @valid (%q: bf16[B, T, 4, 16], %w: bf16[B, T, 4], %x: bf16[B, T, 16], %k: bf16[B, T, 2, 16]) {
  %m = state.rows %x
  %i = seq.index %q, %w, %m {scale = 0.25, chosen = 8} : i64[B, T, 8]
  %kv = state.kv %k, %k
  %ctx = attn.attend %q, %kv, chosen=%i {scale = 0.25} : bf16[B, T, 4, 16]
  return %ctx
}

// -----

graph @nothing_chosen (%q: bf16[B, T, 4, 16], %w: bf16[B, T, 4], %x: bf16[B, T, 16]) {
  %m = state.rows %x
  %i = seq.index %q, %w, %m {scale = 0.25, chosen = 0}
  return %i
}
// ERROR: error[RG034]: seq.index: 0 rows chosen

// -----

graph @a_window (%q: bf16[B, T, 4, 16], %w: bf16[B, T, 4], %x: bf16[B, T, 16]) {
  %m = state.rows %x {window = 64}
  %i = seq.index %q, %w, %m {scale = 0.25, chosen = 8}
  return %i
}
// ERROR: error[RG034]: seq.index: the memory forgets rows

// -----

graph @dtypes_differ (%q: f32[B, T, 4, 16], %w: f32[B, T, 4], %x: bf16[B, T, 16]) {
  %m = state.rows %x
  %i = seq.index %q, %w, %m {scale = 0.25, chosen = 8}
  return %i
}
// ERROR: error[RG034]: seq.index: f32 queries, bf16 memory

// -----

graph @keys_of_another_width (%q: bf16[B, T, 4, 16], %w: bf16[B, T, 4], %x: bf16[B, T, 8]) {
  %m = state.rows %x
  %i = seq.index %q, %w, %m {scale = 0.25, chosen = 8}
  return %i
}
// ERROR: error[RG034]: seq.index: keys are memory<bf16; x [8]>

// -----

graph @chosen_of_a_window (%q: bf16[B, T, 4, 16], %k: bf16[B, T, 2, 16], %i: i64[B, T, 3]) {
  %kv = state.kv %k, %k {window = 64}
  %ctx = attn.attend %q, %kv, chosen=%i {scale = 0.25, window = 64}
  return %ctx
}
// ERROR: error[RG034]: attn.attend: rows chosen of a window of 64

// -----

graph @keys_of_several_heads (%q: bf16[B, T, 4, 16], %w: bf16[B, T, 4], %k: bf16[B, T, 2, 16]) {
  %kv = state.kv %k, %k
  %i = seq.index %q, %w, %kv {scale = 0.25, chosen = 8} : i64[B, T, 8]
  return %i
}

// -----

graph @heads_that_do_not_divide (%q: bf16[B, T, 3, 16], %w: bf16[B, T, 3], %k: bf16[B, T, 2, 16]) {
  %kv = state.kv %k, %k
  %i = seq.index %q, %w, %kv {scale = 0.25, chosen = 8}
  return %i
}
// ERROR: error[RG034]: seq.index: keys are memory<bf16; k [2, 16], v [2, 16]>

// -----

graph @before_rows_of_single_tokens (%q: bf16[B, T, 4, 16], %w: bf16[B, T, 4], %x: bf16[B, T, 16]) {
  %m = state.rows %x
  %i = seq.index %q, %w, %m {scale = 0.25, chosen = 8, window = 64}
  return %i
}
// ERROR: error[RG034]: seq.index: window 64 before rows of 1 tokens
