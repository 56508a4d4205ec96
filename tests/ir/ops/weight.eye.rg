graph @valid () {
  %w = weight.eye : f64[64, 64]
  return %w
}

// -----

graph @a_vector () {
  %w = weight.eye : f64[64]
  return %w
}
// ERROR: error[RG034]: weight.eye: shape [64]
