// gqa-to-latent: a token's keys and values are one row, before rotation; who reads it turns the keys.
// RUN: gqa-to-latent

graph @rows (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %pos: i64[B, T]) {
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 100.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v {window = 16}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 16}
  return %layers.0.ctx
}

// CHECK: %row = core.concat %k_row, %v_row : f32[B, T, 32]
// CHECK: %memory = state.rows %row {window = 16} : memory<f32; x [32]; window 16>
// CHECK: %rows_at = mem.pos %memory : i64[B, S@layers.*.memory]
// CHECK: %k_rope_rows = pos.rope %k_rows, %rows_at {base = 100.0, channels = 8} : f32[B, S@layers.*.memory, 2, 8]
// CHECK: %view = mem.view %memory, %k_rope_rows, v=%v_rows : memory<f32; k [2, 8], v [2, 8]; window 16>

// -----  another layer that reads the memory reads the rows
// RUN: gqa-to-latent

graph @readers (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// CHECK: %rows = mem.read %memory : f32[B, S@layers.0.memory, 32]
// REFUSED: layer 1: not among the layers that make a memory

// -----  keys of which a part is turned are no rows to turn later
// RUN: gqa-to-latent

graph @parts (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %pos: i64[B, T]) {
  %layers.0.a = core.slice %layers.0.k {start = 0, stop = 4}
  %layers.0.b = core.slice %layers.0.k {start = 4, stop = 8}
  %layers.0.turned = pos.rope %layers.0.a, %pos {base = 100.0, channels = 4}
  %layers.0.both = core.concat %layers.0.b, %layers.0.turned
  %layers.0.memory = state.kv %layers.0.both, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// ERROR: error[RG114]: gqa-to-latent: layer 0: %layers.0.both is rotated in a part of its channels that is put together with others

// -----  to-latent: the rank is that of keys and values at most
// RUN: to-latent{rank=33, method=weight-svd, refit=false}

graph @above (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// ERROR: error[RG126]: to-latent: layer 0 keeps 32 numbers a token and cannot have rank 33
// ERROR: = help: legal: a rank from 1 to 32

// -----  of keys and values made in any way, the rows are mapped to a latent
// RUN: to-latent{rank=12, method=weight-svd, refit=false}

graph @mapped (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// CHECK: %latent = core.linear %row, %kv_a_proj.weight : f32[B, T, 12]
// CHECK: %memory = state.rows %latent : memory<f32; x [12]>

// -----  where projections make them of one input, that is mapped; what norms divide by is kept beside
// RUN: to-latent{rank=12, method=weight-svd, refit=false}

graph @projected (%layers.0.q: f32[B, T, 4, 8], %layers.0.x: f32[B, T, 24]) {
  %layers.0.k_proj.weight = weight.load : f32[16, 24]
  %layers.0.v_proj.weight = weight.load : f32[16, 24]
  %layers.0.k_proj = core.linear %layers.0.x, %layers.0.k_proj.weight
  %layers.0.k = core.unflatten %layers.0.k_proj {parts = 2}
  %layers.0.k_norm = core.norm %layers.0.k {eps = 1e-06}
  %layers.0.v_proj = core.linear %layers.0.x, %layers.0.v_proj.weight
  %layers.0.v = core.unflatten %layers.0.v_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k_norm, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// CHECK: %k_scale = core.inverse_rms %k {eps = 1e-06} : f32[B, T, 2]
// CHECK: %latent = core.linear %x, %kv_a_proj.weight : f32[B, T, 12]
// CHECK: %row = core.concat %latent, %k_scale : f32[B, T, 14]
// CHECK: %k_rows_scaled = core.gain %k_rows, %k_row_scales : f32[B, S@layers.*.memory, 2, 8]

// -----  the metric needs to know what the attention's result goes through
// RUN: to-latent{rank=12}

graph @without_output (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// ERROR: error[RG114]: to-latent: layer 0: %layers.0.ctx is read by 0 ops, so it has no single output projection
// ERROR: = help: leave the pass out, as no layer of this model fits it, or use method: balanced-pca

// -----  a number of rotary channels: one key that all heads share goes on turning, by frequencies spelled out
// RUN: to-latent{rank=12, rope=4, kept={0: [0, 1]}, method=weight-svd, refit=false}

graph @decoupled (%layers.0.x: f32[B, T, 24], %pos: i64[B, T]) {
  %layers.0.q_proj.weight = weight.load : f32[32, 24]
  %layers.0.k_proj.weight = weight.load : f32[16, 24]
  %layers.0.v_proj.weight = weight.load : f32[16, 24]
  %layers.0.o_proj.weight = weight.load : f32[24, 32]
  %layers.0.q_proj = core.linear %layers.0.x, %layers.0.q_proj.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 100.0, channels = 4}
  %layers.0.k_proj = core.linear %layers.0.x, %layers.0.k_proj.weight
  %layers.0.k = core.unflatten %layers.0.k_proj {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 100.0, channels = 4}
  %layers.0.v_proj = core.linear %layers.0.x, %layers.0.v_proj.weight
  %layers.0.v = core.unflatten %layers.0.v_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.out = core.linear %layers.0.merged, %layers.0.o_proj.weight
  return %layers.0.out
}

// CHECK: %latent = core.linear %x, %kv_a_proj.weight : f32[B, T, 12]
// CHECK: %k_shared_rope = pos.rope %k_turning, %pos {base = 100.0, channels = 4, scaling = "longrope", factors = [1.0, 0.999999985098839]} : f32[B, T, 1, 4]
// CHECK: %memory = state.rows %row : memory<f32; x [16]>
// CHECK: %q_turning = core.grouped_linear %q, %q_rope_proj.weight : f32[B, T, 4, 4]
// CHECK: %view = mem.view %memory, %k_2, v=%v_rows : memory<f32; k [4, 12], v [4, 8]>
// CHECK: %ctx = attn.attend %q_whole, %view {scale = 0.25} : f32[B, T, 4, 8]

// -----  what turns by head cannot be absorbed
// RUN: to-latent{rank=12, form=absorbed, method=weight-svd, refit=false}

graph @absorbed (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// ERROR: error[RG117]: to-latent: form and rope: all exclude each other
// ERROR: = help: give rope a number of channels: what turns by head cannot be absorbed

// -----  nor is there a rotation to take apart
// RUN: to-latent{rank=12, rope=4, method=weight-svd, refit=false}

graph @still (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// ERROR: error[RG114]: to-latent: layer 0: queries or keys of attn.attend %layers.0.ctx do not end in a rotation
// ERROR: = help: leave the pass out, as no layer of this model fits it, or use rope: all
