graph @valid (%x: bf16[B, T, 576], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.rows %x
  %kv = state.kv %k, %v
  %rows = mem.read %m : bf16[B, S@m, 576]
  %values = mem.read %kv {field = "v"} : bf16[B, S@kv, 4, 16]
  return %rows, %values
}

// -----

graph @no_such_field (%k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %rows = mem.read %m
  return %rows
}
// ERROR: error[RG034]: mem.read: rows have no field 'x'

// -----

graph @no_memory (%x: bf16[B, T, 16]) {
  %rows = mem.read %x
  return %rows
}
// ERROR: error[RG010]: mem.read: operand memory is bf16[B, T, 16], expected memory<*>

// -----

graph @of_another_layer (%x: bf16[B, T, 16]) {
  %layers.0.m = state.rows %x
  %layers.1.m = state.rows %x
  %a = mem.read %layers.0.m
  %b = mem.read %layers.1.m
  %y = core.add %a, %b
  return %y
}
// ERROR: error[RG030]: core.add: operands run along S@layers.0.m and S@layers.1.m
