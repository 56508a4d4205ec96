graph @valid (%x: bf16[B, T, 32], %q: bf16[B, T, 16, 192]) {
  %m = state.rows %x
  %rows = mem.read %m
  %uk = weight.load : bf16[3072, 32]
  %uv = weight.load : bf16[2048, 32]
  %ks = core.linear %rows, %uk
  %k = core.unflatten %ks {parts = 16} : bf16[B, S@m, 16, 192]
  %vs = core.linear %rows, %uv
  %v = core.unflatten %vs {parts = 16} : bf16[B, S@m, 16, 128]
  %kv = mem.view %m, %k, v=%v : memory<bf16; k [16, 192], v [16, 128]>
  %ctx = attn.attend %q, %kv {scale = 0.125} : bf16[B, T, 16, 128]
  %one = mem.view %m, %k : memory<bf16; k [16, 192]>
  return %ctx, %one
}

// -----

graph @rows_of_this_call (%x: bf16[B, T, 32], %k: bf16[B, T, 4, 16]) {
  %m = state.rows %x
  %kv = mem.view %m, %k, v=%k
  return %kv
}
// ERROR: error[RG030]: mem.view: operands run along S@m and T

// -----

graph @rows_of_another_memory (%x: bf16[B, T, 32]) {
  %m = state.rows %x
  %n = state.rows %x
  %rows = mem.read %n
  %k = core.repeat %rows {parts = 4}
  %kv = mem.view %m, %k, v=%k
  return %kv
}
// ERROR: error[RG030]: mem.view: operands run along S@m and S@n
