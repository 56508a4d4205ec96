graph @valid () {
  %w = weight.load : bf16[64, 64]
  %q = weight.take %w {axis = 0, block = 16, indices = [0, 2, 3]} : bf16[48, 64]
  return %q
}

// -----

graph @no_such_block () {
  %w = weight.load : bf16[64, 64]
  %q = weight.take %w {block = 16, indices = [0, 4]}
  return %q
}
// ERROR: error[RG034]: weight.take: blocks [0, 4] of 16 along axis 0 of bf16[64, 64]

// -----

graph @nothing () {
  %w = weight.load : bf16[64, 64]
  %q = weight.take %w {block = 16, indices = []}
  return %q
}
// ERROR: error[RG034]: weight.take: blocks [] of 16 along axis 0 of bf16[64, 64]
