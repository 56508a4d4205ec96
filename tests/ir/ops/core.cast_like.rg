graph @valid (%x: f32[B, T, 64]) {
  %w = weight.load : bf16[64]
  %y = core.cast_like %x, %w : bf16[B, T, 64]
  return %y
}

// -----

graph @to_integers (%x: f32[B, T, 64]) {
  %w = weight.load : i64[64]
  %y = core.cast_like %x, %w
  return %y
}
// ERROR: error[RG010]: core.cast_like: operand like is i64[64], expected float[*]
