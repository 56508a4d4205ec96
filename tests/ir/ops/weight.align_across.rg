graph @valid () {
  %gram = weight.load : f64[32, 32]
  %cross = weight.load : f64[32, 16]
  %a = weight.align_across %gram, %cross {width = 16, channels = 16} : f64[16, 32]
  %b = weight.align_across %gram, %cross {width = 8, channels = 4, layout = "interleaved", ridge = 0.0} : f64[16, 32]
  %c = weight.align_across %gram, %cross {width = 8, channels = 0} : f64[16, 32]
  return %a, %b, %c
}

// -----

graph @no_whole_heads () {
  %gram = weight.load : f64[32, 32]
  %cross = weight.load : f64[32, 16]
  %a = weight.align_across %gram, %cross {width = 32, channels = 16}
  return %a
}
// ERROR: error[RG034]: weight.align_across: heads of 32 channels, of 32 and 16

// -----

graph @odd_channels () {
  %gram = weight.load : f64[32, 32]
  %a = weight.align_across %gram, %gram {width = 16, channels = 15}
  return %a
}
// ERROR: error[RG034]: weight.align_across: 15 channels of 16 turn

// -----

graph @a_negative_ridge () {
  %gram = weight.load : f64[32, 32]
  %a = weight.align_across %gram, %gram {width = 16, channels = 16, ridge = -1.0}
  return %a
}
// ERROR: error[RG034]: weight.align_across: ridge is -1.0
