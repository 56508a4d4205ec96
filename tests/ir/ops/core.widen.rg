graph @valid (%x: bf16[B, T, 64]) {
  %y = core.widen %x : f32[B, T, 64]
  return %y
}

// -----

graph @of_integers (%x: i64[B, T, 64]) {
  %y = core.widen %x
  return %y
}
// ERROR: error[RG010]: core.widen: operand x is i64[B, T, 64], expected float[...]
