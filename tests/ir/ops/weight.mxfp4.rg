graph @valid () {
  %blocks = weight.load : u8[8, 64, 3, 16]
  %scales = weight.load : u8[8, 64, 3]
  %w = weight.mxfp4 %blocks, %scales {dtype = "bf16"} : bf16[8, 64, 96]
  return %w
}

// -----

graph @a_scale_too_few () {
  %blocks = weight.load : u8[8, 64, 3, 16]
  %scales = weight.load : u8[8, 64, 2]
  %w = weight.mxfp4 %blocks, %scales {dtype = "bf16"}
  return %w
}
// ERROR: error[RG010]: weight.mxfp4: operand scales is u8[8, 64, 2], expected u8[8, 64, G]
