graph @valid () {
  %o = weight.load : bf16[32, 64]
  %s = weight.group_gram %o {groups = [0, 0, 1, 1], parts = 2} : f64[2, 16, 16]
  return %s
}

// -----

graph @uneven_columns () {
  %w = weight.load : bf16[12, 16]
  %c = weight.group_gram %w {groups = [0, 1, 1], parts = 2}
  return %c
}
// ERROR: error[RG034]: weight.group_gram: 16 columns for 3 heads
