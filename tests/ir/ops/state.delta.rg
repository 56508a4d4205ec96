graph @valid (%q, %k: bf16[B, T, 16, 128], %v: bf16[B, T, 32, 128], %g: f32[B, T, 32], %beta: bf16[B, T, 32]) {
  %o, %m = state.delta %q, %k, %v, %g, %beta : bf16[B, T, 32, 128], memory<f32; s [32, 128, 128]; fixed 1>
  return %o
}

// -----

graph @heads_that_do_not_deal (%q: bf16[B, T, 3, 16], %v: bf16[B, T, 4, 8], %g: f32[B, T, 4]) {
  %layers.1.attn.o, %layers.1.attn.m = state.delta %q, %q, %v, %g, %g
  return %layers.1.attn.o
}
// ERROR: error[RG031]: state.delta: 4 query heads over 3 key/value heads need a head_map

// -----

graph @one_rate_a_value_head (%q: bf16[B, T, 2, 16], %v: bf16[B, T, 4, 8], %g: f32[B, T, 2]) {
  %o, %m = state.delta %q, %q, %v, %g, %g
  return %o
}
// ERROR: error[RG010]: state.delta: operand g is f32[B, T, 2], expected float[B, T, Hv]

// -----

graph @read_as_rows (%q: bf16[B, T, 2, 16], %g: f32[B, T, 2]) {
  %o, %m = state.delta %q, %q, %q, %g, %g
  %y = attn.attend %q, %m {scale = 1.0}
  return %y
}
// ERROR: error[RG010]: attn.attend: operand memory is memory<f32; s [2, 16, 16]; fixed 1>, expected memory<k Hkv D, v? Hkv Dv>
