graph @valid () {
  %q = weight.load : bf16[128, 64]
  %k = weight.load : bf16[64, 64]
  %v = weight.load : bf16[64, 64]
  %qkv = weight.concat %q, %k, %v : bf16[256, 64]
  return %qkv
}

// -----

graph @widths_differ () {
  %q = weight.load : bf16[128, 64]
  %k = weight.load : bf16[64, 32]
  %y = weight.concat %q, %k
  return %y
}
// ERROR: error[RG034]: weight.concat: bf16[128, 64] beside bf16[64, 32]

// -----

graph @no_such_axis () {
  %q = weight.load : bf16[128, 64]
  %y = weight.concat %q, %q {axis = 2}
  return %y
}
// ERROR: error[RG034]: weight.concat: axis 2 of bf16[128, 64]
