graph @valid () {
  %x = weight.load : bf16[8, 32, 64]
  %w = weight.transpose %x : bf16[8, 64, 32]
  return %w
}

// -----

graph @a_vector () {
  %x = weight.load : bf16[8]
  %w = weight.transpose %x
  return %w
}
// ERROR: error[RG010]: weight.transpose: operand x is bf16[8], expected any[..., I, O]
