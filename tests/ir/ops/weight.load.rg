graph @valid () {
  %w = weight.load : bf16[128, 64]
  %layers.3.v = weight.load {tensor = "v"} : f32[8]
  %correction = weight.load {buffer = true} : f32[256]
  return %w, %layers.3.v, %correction
}

// -----

graph @no_shape () {
  %w = weight.load {dtype = "bf16"}
  return %w
}
// ERROR: error[RG006]: weight.load: attribute shape: missing

// -----

graph @symbolic () {
  %w = weight.load : bf16[T, 64]
  return %w
}
// ERROR: error[RG006]: weight.load: attribute dtype: missing

// -----

graph @empty () {
  %w = weight.load {dtype = "bf16", shape = [4, 0]}
  return %w
}
// ERROR: error[RG034]: weight.load: shape [4, 0]

// -----

graph @unknown_dtype () {
  %w = weight.load {dtype = "bf17", shape = [4]}
  return %w
}
// ERROR: error[RG006]: weight.load: attribute dtype: 'bf17' is not a choice

// -----

graph @two_shapes () {
  %w = weight.load {shape = [4]} : bf16[8]
  return %w
}
// ERROR: error[RG001]: expected shape = [8], as the type says, found [4]
