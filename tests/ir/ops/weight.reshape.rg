graph @valid () {
  %x = weight.load : bf16[64, 64]
  %w = weight.reshape %x {shape = [4, 16, 64]} : bf16[4, 16, 64]
  return %w
}

// -----

graph @elements_are_missing () {
  %x = weight.load : bf16[64, 64]
  %w = weight.reshape %x {shape = [4, 16, 32]}
  return %w
}
// ERROR: error[RG034]: weight.reshape: bf16[64, 64] as [4, 16, 32]
