graph @valid () {
  %w = weight.fill {value = 1.0} : bf16[64]
  return %w
}

// -----

graph @an_empty_axis () {
  %w = weight.fill : bf16[0]
  return %w
}
// ERROR: error[RG005]: '0' is no dimension
