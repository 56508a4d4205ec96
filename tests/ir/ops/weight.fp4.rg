graph @valid () {
  %codes = weight.load : i8[8, 64, 64]
  %scales = weight.load : f8e8m0[8, 64, 4]
  %w = weight.fp4 %codes, %scales {dtype = "bf16"} : bf16[8, 64, 128]
  return %w
}

// -----

graph @uneven_groups () {
  %codes = weight.load : i8[64, 64]
  %scales = weight.load : f8e8m0[64, 3]
  %w = weight.fp4 %codes, %scales {dtype = "bf16"}
  return %w
}
// ERROR: error[RG034]: weight.fp4: 128 values in 3 groups
