// to-cca: fewer frequencies, the same for all heads, narrower values, and convolutions that start as deltas.
// RUN: to-cca{width=4, kept={0: [0, 2]}, refit=false}

graph @narrow (%layers.0.x: f32[B, T, 24], %pos: i64[B, T]) {
  %layers.0.q_proj.weight = weight.load : f32[32, 24]
  %layers.0.k_proj.weight = weight.load : f32[16, 24]
  %layers.0.v_proj.weight = weight.load : f32[16, 24]
  %layers.0.o_proj.weight = weight.load : f32[24, 32]
  %layers.0.q_proj = core.linear %layers.0.x, %layers.0.q_proj.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 16.0, channels = 8}
  %layers.0.k_proj = core.linear %layers.0.x, %layers.0.k_proj.weight
  %layers.0.k = core.unflatten %layers.0.k_proj {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 16.0, channels = 8}
  %layers.0.v_proj = core.linear %layers.0.x, %layers.0.v_proj.weight
  %layers.0.v = core.unflatten %layers.0.v_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.out = core.linear %layers.0.merged, %layers.0.o_proj.weight
  return %layers.0.out
}

// CHECK: %k_proj.weight = weight.take %k_proj.weight.original {block = 1, indices = [0, 2, 4, 6, 8, 10, 12, 14]} : f32[8, 24]
// CHECK: %k_tail = state.tail %k_proj {rows = 1} : memory<f32; x [8]; fixed 1>
// CHECK: %k_rope = pos.rope %k, %pos {base = 16.0, channels = 4, scaling = "longrope", factors = [1.0, 1.0]} : f32[B, T, 2, 4]
// CHECK: %memory = state.kv %k_rope, %v : memory<f32; k [2, 4], v [2, 4]>
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25} : f32[B, T, 4, 4]

// -----  a width that is odd, or wider than the heads are
// RUN: to-cca{width=3, refit=false}

graph @odd (%layers.0.x: f32[B, T, 24], %pos: i64[B, T]) {
  %layers.0.q_proj.weight = weight.load : f32[32, 24]
  %layers.0.k_proj.weight = weight.load : f32[32, 24]
  %layers.0.v_proj.weight = weight.load : f32[32, 24]
  %layers.0.o_proj.weight = weight.load : f32[24, 32]
  %layers.0.q_proj = core.linear %layers.0.x, %layers.0.q_proj.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 16.0, channels = 8}
  %layers.0.k_proj = core.linear %layers.0.x, %layers.0.k_proj.weight
  %layers.0.k = core.unflatten %layers.0.k_proj {parts = 4}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 16.0, channels = 8}
  %layers.0.v_proj = core.linear %layers.0.x, %layers.0.v_proj.weight
  %layers.0.v = core.unflatten %layers.0.v_proj {parts = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.out = core.linear %layers.0.merged, %layers.0.o_proj.weight
  return %layers.0.out
}

// ERROR: error[RG126]: to-cca: layer 0 has heads of 8 channels and cannot have width 3
// ERROR: = help: legal: an even width from 2 to 8, of different frequencies from 0 to 3
