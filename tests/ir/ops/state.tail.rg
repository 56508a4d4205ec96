graph @valid (%x: bf16[B, T, 1280], %first: bf16[1280]) {
  %m = state.tail %x {rows = 3} : memory<bf16; x [1280]; fixed 3>
  %n = state.tail %x, initial=%first {rows = 1} : memory<bf16; x [1280]; fixed 1>
  return %m, %n
}

// -----

graph @no_rows (%x: bf16[B, T, 8]) {
  %layers.2.attn.tail = state.tail %x {rows = 0}
  return %layers.2.attn.tail
}
// ERROR: error[RG034]: state.tail: 0 rows
//          --> state.tail.rg:10:25   layers.2.attn
//            10 |   %layers.2.attn.tail = state.tail %x {rows = 0}
//               |                         ^^^^^^^^^^
//          = help: a tail keeps at least one row

// -----

graph @rows_of_a_memory (%x: bf16[B, S@m, 8]) {
  %t = state.tail %x {rows = 1}
  return %t
}
// ERROR: error[RG035]: state.tail: runs along S@m; memories are made and read along T only

// -----

graph @initial_of_another_width (%x: bf16[B, T, 8], %first: bf16[4]) {
  %t = state.tail %x, initial=%first {rows = 1}
  return %t
}
// ERROR: error[RG010]: state.tail: operand initial is bf16[4], expected float[C]
