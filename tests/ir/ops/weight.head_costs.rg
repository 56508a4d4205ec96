graph @valid () {
  %s = weight.load : f64[4, 9, 9]
  %o = weight.load : bf16[64, 32]
  %c = weight.head_costs %s, %o : f64[4]
  return %c
}

// -----

graph @other_channels () {
  %s = weight.load : f64[4, 8, 8]
  %o = weight.load : bf16[64, 32]
  %c = weight.head_costs %s, %o
  return %c
}
// ERROR: error[RG034]: weight.head_costs: an output of 32 channels for 4 heads, a spread of 8
