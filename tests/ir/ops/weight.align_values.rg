graph @valid () {
  %w = weight.load : bf16[64, 32]
  %gram = weight.load : f64[16, 16]
  %cross = weight.load : f64[16, 32]
  %o = weight.align_values %w, %gram, %cross {own = [0, 0], donor = [0, 0]} : bf16[64, 32]
  %p = weight.align_values %w, %gram, %cross {own = [1, 0], donor = [0, 0], ridge = 0.0} : bf16[64, 32]
  return %o, %p
}

// -----

graph @heads_are_missing () {
  %w = weight.load : bf16[64, 32]
  %gram = weight.load : f64[16, 16]
  %o = weight.align_values %w, %gram, %gram {own = [0, 0], donor = [0]}
  return %o
}
// ERROR: error[RG034]: weight.align_values: 32 columns, 2 and 1 heads

// -----

graph @a_head_beyond_the_statistics () {
  %w = weight.load : bf16[64, 32]
  %gram = weight.load : f64[16, 16]
  %o = weight.align_values %w, %gram, %gram {own = [0, 1], donor = [0, 0]}
  return %o
}
// ERROR: error[RG034]: weight.align_values: a head reads values that the statistics do not hold

// -----

graph @a_negative_ridge () {
  %w = weight.load : bf16[64, 32]
  %gram = weight.load : f64[16, 16]
  %o = weight.align_values %w, %gram, %gram {own = [0, 0], donor = [0, 0], ridge = -1.0}
  return %o
}
// ERROR: error[RG034]: weight.align_values: ridge is -1.0
