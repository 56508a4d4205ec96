graph @valid () {
  %w = weight.load : bf16[12, 16]
  %c = weight.group_gram %w {groups = [0, 1, 1, 0], parts = 2} : f64[2, 4, 4]
  return %c
}

// -----

graph @uneven_columns () {
  %w = weight.load : bf16[12, 16]
  %c = weight.group_gram %w {groups = [0, 1, 1], parts = 2}
  return %c
}
// ERROR: error[RG034]: weight.group_gram: 16 columns for 3 heads
