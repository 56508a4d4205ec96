graph @valid (%a, %b: bf16[B, T, 64]) {
  %y = core.mul %a, %b : bf16[B, T, 64]
  return %y
}

// -----

graph @shapes_differ (%a: bf16[B, T, 64], %b: bf16[B, T, 32]) {
  %y = core.mul %a, %b
  return %y
}
// ERROR: error[RG010]: core.mul: operand b is bf16[B, T, 32], expected bf16[B, T, 64], the dtype of a

// -----

graph @one_operand (%a: bf16[B, T, 64]) {
  %y = core.mul %a
  return %y
}
// ERROR: error[RG007]: core.mul: 0 values for operand b, expected 1
