graph @valid (%x: bf16[B, T, 128]) {
  %tail = state.tail %x {rows = 1}
  %y = seq.shift %tail : bf16[B, T, 128]
  return %y
}

// -----

graph @keys_and_values (%k: bf16[B, T, 2, 6]) {
  %m = state.kv %k, %k
  %y = seq.shift %m
  return %y
}
// ERROR: error[RG010]: seq.shift: operand memory is memory<bf16; k [2, 6], v [2, 6]>, expected memory<x C>
