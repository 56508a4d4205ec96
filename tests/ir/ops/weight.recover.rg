graph @valid () {
  %w = weight.load : bf16[64, 128]
  %a = weight.load : bf16[8, 128]
  %c = weight.load : f64[128, 128]
  %u = weight.recover %w, %a, gram=%c : f64[64, 8]
  %v = weight.recover %w, %a : f64[64, 8]
  return %u, %v
}

// -----

graph @other_rows () {
  %w = weight.load : bf16[64, 128]
  %a = weight.load : bf16[8, 96]
  %u = weight.recover %w, %a
  return %u
}
// ERROR: error[RG010]: weight.recover: operand down is bf16[8, 96], expected float[R, Z]
