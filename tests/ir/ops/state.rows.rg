graph @valid (%x: bf16[B, T, 576]) {
  %m = state.rows %x : memory<bf16; x [576]>
  %short = state.rows %x {window = 8} : memory<bf16; x [576]; window 8>
  %y = mem.read %m : bf16[B, S@m, 576]
  return %m, %short, %y
}

// -----

graph @rows_of_heads (%x: bf16[B, T, 4, 16]) {
  %m = state.rows %x
  return %m
}
// ERROR: error[RG010]: state.rows: operand x is bf16[B, T, 4, 16], expected float[B, T, M]

// -----

graph @an_empty_window (%x: bf16[B, T, 16]) {
  %m = state.rows %x {window = 0}
  return %m
}
// ERROR: error[RG034]: state.rows: window 0

// -----

graph @rows_of_a_memory (%x: bf16[B, T, 16]) {
  %m = state.rows %x
  %y = mem.read %m
  %n = state.rows %y
  return %n
}
// ERROR: error[RG035]: state.rows: runs along S@m; memories are made and read along T only
