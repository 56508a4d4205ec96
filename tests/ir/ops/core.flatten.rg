graph @valid (%ctx: bf16[B, T, 8, 16]) {
  %y = core.flatten %ctx : bf16[B, T, 128]
  return %y
}

// -----

graph @the_sequence (%ctx: bf16[B, T, 16]) {
  %y = core.flatten %ctx
  return %y
}
// ERROR: error[RG010]: core.flatten: operand x is bf16[B, T, 16], expected any[..., H, D]
