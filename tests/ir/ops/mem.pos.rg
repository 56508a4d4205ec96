graph @valid (%x: bf16[B, T, 576]) {
  %m = state.rows %x
  %pos = mem.pos %m : i64[B, S@m]
  return %pos
}

// -----

graph @positions_of_a_view (%x: bf16[B, T, 16]) {
  %m = state.rows %x
  %rows = mem.read %m
  %k = core.repeat %rows {parts = 2}
  %view = mem.view %m, %k
  %pos = mem.pos %view
  return %pos
}
// ERROR: error[RG034]: mem.pos: %view keeps no row of each token
