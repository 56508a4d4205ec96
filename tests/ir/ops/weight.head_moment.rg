graph @valid (%q: bf16[B, T, 8, 16]) {
  %c = weight.head_moment %q {heads = 8, width = 16} : f64[8, 16, 16]
  return %c
}

// -----

graph @other_heads (%q: bf16[B, T, 8, 16]) {
  %c = weight.head_moment %q {heads = 4, width = 16}
  return %c
}
// ERROR: error[RG034]: weight.head_moment: bf16[B, T, 8, 16] for 4 heads of 16 channels
