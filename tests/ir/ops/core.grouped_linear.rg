graph @valid (%x: bf16[B, T, 8, 512]) {
  %w = weight.load : bf16[512, 512]
  %y = core.grouped_linear %x, %w : bf16[B, T, 8, 64]
  return %y
}

// -----

graph @uneven_rows (%x: bf16[B, T, 8, 16]) {
  %w = weight.load : bf16[60, 16]
  %y = core.grouped_linear %x, %w
  return %y
}
// ERROR: error[RG034]: core.grouped_linear: 60 rows for 8 groups

// -----

graph @transposed (%x: bf16[B, T, 8, 64]) {
  %w = weight.load : bf16[512, 512]
  %y = core.grouped_linear %x, %w {transposed = true} : bf16[B, T, 8, 512]
  return %y
}

// -----

graph @other_columns (%x: bf16[B, T, 8, 16]) {
  %w = weight.load : bf16[64, 12]
  %y = core.grouped_linear %x, %w
  return %y
}
// ERROR: error[RG034]: core.grouped_linear: 64 rows for 8 groups, of 12 columns for 16 channels

// -----

graph @other_rows (%x: bf16[B, T, 8, 16]) {
  %w = weight.load : bf16[64, 12]
  %y = core.grouped_linear %x, %w {transposed = true}
  return %y
}
// ERROR: error[RG034]: core.grouped_linear: 64 rows for 8 groups of 16 channels
