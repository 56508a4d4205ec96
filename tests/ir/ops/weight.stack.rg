graph @valid () {
  %e0 = weight.load : bf16[64, 32]
  %e1 = weight.load : bf16[64, 32]
  %e = weight.stack %e0, %e1 : bf16[2, 64, 32]
  return %e
}

// -----

graph @dtypes_differ () {
  %a = weight.load : bf16[64, 32]
  %b = weight.load : f32[64, 32]
  %e = weight.stack %a, %b
  return %e
}
// ERROR: error[RG010]: weight.stack: operand xs is f32[64, 32], expected bf16[64, 32], the dtype of xs

// -----

graph @nothing () {
  %e = weight.stack : bf16[0, 64, 32]
  return %e
}
// ERROR: error[RG005]: '0' is no dimension
