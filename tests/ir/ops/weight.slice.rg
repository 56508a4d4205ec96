graph @valid () {
  %qkv = weight.load : bf16[256, 64]
  %k = weight.slice %qkv {axis = 0, start = 128, stop = 192} : bf16[64, 64]
  return %k
}

// -----

graph @beyond_the_end () {
  %w = weight.load : bf16[256, 64]
  %k = weight.slice %w {axis = 1, start = 0, stop = 65}
  return %k
}
// ERROR: error[RG034]: weight.slice: 0 to 65 along axis 1 of bf16[256, 64]

// -----

graph @of_a_run_time_value (%x: bf16[B, T, 64]) {
  %layers.0.k = weight.slice %x {axis = 2, start = 0, stop = 8}
  return %layers.0.k
}
// ERROR: error[RG021]: weight.slice: weight-time, but operand %x is known only at run time
//          --> weight.slice.rg:19:17   layers.0
//            19 |   %layers.0.k = weight.slice %x {axis = 2, start = 0, stop = 8}
//               |                 ^^^^^^^^^^^^
//          = help: only weight.moment may read run-time values
