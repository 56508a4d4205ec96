graph @valid () {
  %w = weight.load : bf16[32, 64]
  %gram = weight.load : f64[16, 16]
  %cross = weight.load : f64[16, 16]
  %norm = weight.load : bf16[16]
  %q = weight.align %w, %gram, %cross {own = [0, 0], donor = [0, 0], channels = 16} : bf16[32, 64]
  %n = weight.align %w, %gram, %cross, norm=%norm {own = [0, 0], donor = [0, 0], channels = 8, layout = "interleaved", ridge = 0.0} : bf16[32, 64]
  return %q, %n
}

// -----

graph @heads_are_missing () {
  %w = weight.load : bf16[32, 64]
  %gram = weight.load : f64[16, 16]
  %q = weight.align %w, %gram, %gram {own = [0, 0], donor = [0], channels = 16}
  return %q
}
// ERROR: error[RG034]: weight.align: 32 rows, 2 and 1 heads

// -----

graph @odd_channels () {
  %w = weight.load : bf16[32, 64]
  %gram = weight.load : f64[16, 16]
  %q = weight.align %w, %gram, %gram {own = [0, 0], donor = [0, 0], channels = 15}
  return %q
}
// ERROR: error[RG034]: weight.align: 15 channels of 16 turn

// -----

graph @a_head_beyond_the_statistics () {
  %w = weight.load : bf16[32, 64]
  %gram = weight.load : f64[16, 16]
  %q = weight.align %w, %gram, %gram {own = [0, 0], donor = [0, 1], channels = 16}
  return %q
}
// ERROR: error[RG034]: weight.align: a head reads keys that the statistics do not hold

// -----

graph @a_norm_of_another_width () {
  %w = weight.load : bf16[32, 64]
  %gram = weight.load : f64[16, 16]
  %norm = weight.load : bf16[8]
  %q = weight.align %w, %gram, %gram, norm=%norm {own = [0, 0], donor = [0, 0], channels = 16}
  return %q
}
// ERROR: error[RG034]: weight.align: a norm of 8 channels for heads of 16
