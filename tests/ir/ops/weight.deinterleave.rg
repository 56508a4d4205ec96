graph @valid () {
  %x = weight.load : bf16[8, 64, 32]
  %w = weight.deinterleave %x {axis = 1} : bf16[8, 64, 32]
  return %w
}

// -----

graph @an_odd_axis () {
  %x = weight.load : bf16[8, 63]
  %w = weight.deinterleave %x {axis = 1}
  return %w
}
// ERROR: error[RG034]: weight.deinterleave: axis 1 of bf16[8, 63]
