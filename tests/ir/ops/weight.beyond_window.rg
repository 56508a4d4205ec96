graph @valid (%q: bf16[B, T, 4, 16], %k, %v: bf16[B, T, 2, 16]) {
  %m = state.kv %k, %v
  %s = weight.beyond_window %q, %m {scale = 0.25, window = 64, groups = [0, 0, 1, 1]} : f64[4]
  return %s
}

// -----

graph @a_group_too_few (%q: bf16[B, T, 4, 16], %k, %v: bf16[B, T, 2, 16]) {
  %m = state.kv %k, %v
  %s = weight.beyond_window %q, %m {scale = 0.25, window = 64, groups = [0, 0, 1]}
  return %s
}
// ERROR: error[RG034]: weight.beyond_window: groups [0, 0, 1] of 4 heads over 2
