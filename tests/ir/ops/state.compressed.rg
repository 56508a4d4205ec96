graph @valid (%values, %gates: bf16[B, T, 1024], %q: bf16[B, T, 8, 512], %x: bf16[B, T, 512]) {
  %bias = weight.load : f32[4, 1024]
  %m = state.compressed %values, %bias, gates=%gates {rate = 4, overlap = true} : memory<bf16; x [512]; every 4>
  %rows = mem.read %m : bf16[B, S@m, 512]
  %keys = core.unflatten %rows {parts = 1}
  %entries = mem.view %m, %keys : memory<bf16; k [1, 512]; every 4>
  %near = state.rows %x {window = 128}
  %tokens = mem.read %near
  %k = core.unflatten %tokens {parts = 1}
  %view = mem.view %near, %k : memory<bf16; k [1, 512]; window 128>
  %ctx = attn.attend %q, %view, entries=%entries {scale = 0.1, window = 128} : bf16[B, T, 8, 512]
  return %ctx
}

// -----

graph @biases_of_another_rate (%values, %gates: bf16[B, T, 1024]) {
  %bias = weight.load : f32[8, 1024]
  %m = state.compressed %values, %bias, gates=%gates {rate = 4}
  return %m
}
// ERROR: error[RG034]: state.compressed: rate 4, biases for 8

// -----

graph @odd_channels (%values, %gates: bf16[B, T, 7]) {
  %bias = weight.load : f32[4, 7]
  %m = state.compressed %values, %bias, gates=%gates {rate = 4, overlap = true}
  return %m
}
// ERROR: error[RG034]: state.compressed: 7 channels in two halves

// -----

graph @without_gates (%values: bf16[B, T, 8]) {
  %bias = weight.load : f32[4, 8]
  %m = state.compressed %values, %bias {rate = 4} : memory<bf16; x [8]; every 4>
  return %m
}
