graph @valid () {
  %q = weight.load : bf16[128, 64]
  %norm = weight.load : bf16[64]
  %w = weight.scale %q, %norm {axis = 1} : bf16[128, 64]
  return %w
}

// -----

graph @factors_are_too_many () {
  %q = weight.load : bf16[128, 64]
  %norm = weight.load : bf16[64]
  %w = weight.scale %q, %norm
  return %w
}
// ERROR: error[RG034]: weight.scale: 64 factors along axis 0 of bf16[128, 64]
