graph @valid () {
  %c = weight.load : f64[32, 32]
  %q = weight.load : f64[2, 16, 16]
  %down, %up = weight.merge_heads %c, %q {groups = [0, 0], channels = 16, pairs = 8} : f64[16, 32], f64[2, 16, 16]
  %g = weight.load : f64[16, 16]
  %r = weight.load : f64[4, 4, 4]
  %d, %u = weight.merge_heads %g, %r {groups = [1, 0, 0, 1], channels = 4, pairs = 1, layout = "interleaved"} : f64[8, 16], f64[4, 4, 4]
  %e, %v = weight.merge_heads %g, %r {groups = [0, 0, 0, 0], mixing = false, method = "mean"} : f64[4, 16], f64[4, 4, 4]
  return %down, %up, %d, %u, %e, %v
}

// -----

graph @a_group_without_heads () {
  %c = weight.load : f64[16, 16]
  %r = weight.load : f64[4, 4, 4]
  %down, %up = weight.merge_heads %c, %r {groups = [0, 0, 2, 2]}
  return %down, %up
}
// ERROR: error[RG034]: weight.merge_heads: groups [0, 0, 2, 2] for 4 heads

// -----

graph @too_many_pairs () {
  %c = weight.load : f64[16, 16]
  %r = weight.load : f64[4, 4, 4]
  %down, %up = weight.merge_heads %c, %r {groups = [0, 0, 1, 1], channels = 4, pairs = 3}
  return %down, %up
}
// ERROR: error[RG034]: weight.merge_heads: 3 pairs of 4 channels of 4 turn

// -----

graph @moments_of_other_heads () {
  %c = weight.load : f64[12, 12]
  %r = weight.load : f64[4, 4, 4]
  %down, %up = weight.merge_heads %c, %r {groups = [0, 0, 1, 1]}
  return %down, %up
}
// ERROR: error[RG034]: weight.merge_heads: moments of 12 channels for 4 heads of 4
