graph @valid () {
  %x = weight.load : bf16[4, 16, 64]
  %w = weight.permute %x {axes = [1, 0, 2]} : bf16[16, 4, 64]
  return %w
}

// -----

graph @an_axis_twice () {
  %x = weight.load : bf16[4, 16, 64]
  %w = weight.permute %x {axes = [1, 1, 2]}
  return %w
}
// ERROR: error[RG034]: weight.permute: axes [1, 1, 2] of bf16[4, 16, 64]
