graph @valid () {
  %packed = weight.load : f8e4m3[1536, 7168]
  %scales = weight.load : f32[12, 56]
  %w = weight.dequantize %packed, %scales {block = [128, 128], dtype = "bf16"} : bf16[1536, 7168]
  return %w
}

// -----

graph @too_few_scales () {
  %packed = weight.load : f8e4m3[200, 128]
  %scales = weight.load : f32[1, 1]
  %w = weight.dequantize %packed, %scales {block = [128, 128], dtype = "bf16"}
  return %w
}
// ERROR: error[RG034]: weight.dequantize: f32[1, 1] scales for f8e4m3[200, 128] in blocks of [128, 128]

// -----

graph @no_block () {
  %packed = weight.load : f8e4m3[128, 128]
  %scales = weight.load : f32[1, 1]
  %w = weight.dequantize %packed, %scales {block = [128], dtype = "bf16"}
  return %w
}
// ERROR: error[RG034]: weight.dequantize: block [128]
