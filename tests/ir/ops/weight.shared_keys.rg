graph @valid () {
  %k = weight.load : f64[32, 32]
  %q = weight.load : f64[4, 16, 16]
  %p = weight.load : f64[4, 8, 2]
  %s = weight.shared_keys %k, %q, %p {groups = [0, 0, 1, 1], kept = [0, 0, 1], channels = 16} : f64[2, 6, 32]
  return %s
}

// -----

graph @more_often_than_there_are_heads () {
  %k = weight.load : f64[32, 32]
  %q = weight.load : f64[4, 16, 16]
  %p = weight.load : f64[4, 8, 2]
  %s = weight.shared_keys %k, %q, %p {groups = [0, 0, 1, 1], kept = [0, 0, 0], channels = 16}
  return %s
}
// ERROR: error[RG034]: weight.shared_keys: frequencies [0, 0, 0] of 8, 2 KV heads

// -----

graph @heads_that_are_not_there () {
  %k = weight.load : f64[32, 32]
  %q = weight.load : f64[4, 16, 16]
  %p = weight.load : f64[4, 8, 2]
  %s = weight.shared_keys %k, %q, %p {groups = [0, 0, 1, 2], kept = [0], channels = 16}
  return %s
}
// ERROR: error[RG034]: weight.shared_keys: groups [0, 0, 1, 2] of 4 heads, keys of 32 channels
