graph @valid () {
  %w = weight.random {std = 0.02, seed = 0} : bf16[64, 16]
  return %w
}

// -----

graph @a_negative_spread () {
  %w = weight.random {std = -1.0} : bf16[64, 16]
  return %w
}
// ERROR: error[RG034]: weight.random: std -1.0, seed 0
