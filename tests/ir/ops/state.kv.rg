graph @valid (%k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v {window = 512} : memory<bf16; k [4, 16], v [4, 16]; window 512>
  %n = state.kv %k, %v : memory<bf16; k [4, 16], v [4, 16]>
  return %m, %n
}

// -----

graph @rows_of_a_memory (%k, %v: bf16[B, S@layers.0.attn.memory, 4, 16]) {
  %layers.1.attn.memory = state.kv %k, %v
  return %layers.1.attn.memory
}
// ERROR: error[RG035]: state.kv: runs along S@layers.0.attn.memory; memories are made and read along T only
//          --> state.kv.rg:10:27   layers.1.attn
//            10 |   %layers.1.attn.memory = state.kv %k, %v
//               |                           ^^^^^^^^
//          = help: rows of a memory may pass through token-wise ops, but only the T rows of this call become or query a memory

// -----

graph @no_window (%k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v {window = 0}
  return %m
}
// ERROR: error[RG034]: state.kv: window 0

// -----

graph @heads_differ (%k: bf16[B, T, 4, 16], %v: bf16[B, T, 2, 16]) {
  %m = state.kv %k, %v
  return %m
}
// ERROR: error[RG010]: state.kv: operand v is bf16[B, T, 2, 16], expected bf16[B, T, Hkv, Dv], the dtype of k

// -----

graph @dtypes_differ (%k: bf16[B, T, 4, 16], %v: f32[B, T, 4, 16]) {
  %m = state.kv %k, %v
  return %m
}
// ERROR: error[RG010]: state.kv: operand v is f32[B, T, 4, 16], expected bf16[B, T, Hkv, Dv], the dtype of k

// -----

graph @first_rows_beside_all (%k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v {first = 4}
  return %m
}
// ERROR: error[RG034]: state.kv: first 4, window none
