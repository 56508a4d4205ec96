graph @valid (%x: bf16[B, T, 64], %b: bf16[64]) {
  %y = core.bias %x, %b : bf16[B, T, 64]
  return %y
}

// -----

graph @another_width (%x: bf16[B, T, 64], %b: bf16[32]) {
  %y = core.bias %x, %b
  return %y
}
// ERROR: error[RG010]: core.bias: operand bias is bf16[32], expected float[M]
