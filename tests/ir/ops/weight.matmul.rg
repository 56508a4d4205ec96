graph @valid () {
  %up = weight.load : bf16[64, 8]
  %down = weight.load : bf16[8, 128]
  %w = weight.matmul %up, %down : f64[64, 128]
  return %w
}

// -----

graph @inner_sizes_differ () {
  %a = weight.load : f32[64, 8]
  %b = weight.load : f32[4, 128]
  %w = weight.matmul %a, %b
  return %w
}
// ERROR: error[RG010]: weight.matmul: operand b is f32[4, 128], expected float[K, O]
