// budget-heads: fewer query heads, layer by layer.
// RUN: budget-heads{keep={0: [1, 2]}, refit=false}
// rows of the query projection and columns of the output projection go; groups stay even, so no head map

graph @even (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wq.original = weight.load {tensor = "layers.*.wq"} : f32[32, 12]
// CHECK: %wq = weight.take %wq.original {block = 8, indices = [1, 2]} : f32[16, 12]
// CHECK: %q_flat = core.linear %x, %wq : f32[B, T, 16]
// CHECK: %q = core.unflatten %q_flat {parts = 2} : f32[B, T, 2, 8]
// CHECK: %wk = weight.load : f32[16, 12]
// CHECK: %memory = state.kv %k_rope, %v : memory<f32; k [2, 8], v [2, 8]>
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25} : f32[B, T, 2, 8]
// CHECK: %wo = weight.take %wo.original {axis = 1, block = 8, indices = [1, 2]} : f32[12, 16]

// -----  uneven groups get a head map; biases and per-head norms follow
// RUN: budget-heads{keep={0: [0, 1, 3]}, refit=false}

graph @uneven (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.bq = weight.load : f32[32]
  %layers.0.q_flat = core.linear %x, %layers.0.wq, bias=%layers.0.bq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.wn = weight.load : f32[8]
  %layers.0.q_norm = core.norm %layers.0.q, weight=%layers.0.wn {eps = 1e-06}
  %layers.0.q_rope = pos.rope %layers.0.q_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %bq = weight.take %bq.original {block = 8, indices = [0, 1, 3]} : f32[24]
// CHECK: %wn = weight.load : f32[8]
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25, head_map = [0, 0, 1]} : f32[B, T, 3, 8]

// -----  a gate is cut with its heads
// RUN: budget-heads{keep={0: [0, 3]}, refit=false}

graph @gate (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.wg = weight.load : f32[32, 12]
  %layers.0.g = core.linear %x, %layers.0.wg
  %layers.0.g_act = core.activation %layers.0.g {kind = "sigmoid"}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.gated = core.mul %layers.0.merged, %layers.0.g_act
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.gated, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wg = weight.take %wg.original {block = 8, indices = [0, 3]} : f32[16, 12]
// CHECK: %gated = core.mul %merged, %g_act : f32[B, T, 16]

// -----  no head is left that reads KV head 0: it goes too
// RUN: budget-heads{keep={0: [2, 3]}, refit=false}

graph @group (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wk = weight.take %wk.original {block = 8, indices = [1]} : f32[8, 12]
// CHECK: %wv = weight.take %wv.original {block = 8, indices = [1]} : f32[8, 12]
// CHECK: %memory = state.kv %k_rope, %v : memory<f32; k [1, 8], v [1, 8]>
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25} : f32[B, T, 2, 8]

// -----  another layer reads it still: it stays, and the map says which is read
// RUN: budget-heads{keep={0: [2, 3]}, refit=false}

graph @shared (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  %layers.1.wq = weight.load : f32[32, 12]
  %layers.1.q_flat = core.linear %layers.0.out, %layers.1.wq
  %layers.1.q = core.unflatten %layers.1.q_flat {parts = 4}
  %layers.1.q_rope = pos.rope %layers.1.q, %pos {base = 10000.0, channels = 8}
  %layers.1.ctx = attn.attend %layers.1.q_rope, %layers.0.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.wo = weight.load : f32[12, 32]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.wo
  %layers.1.out = core.add %layers.0.out, %layers.1.y
  return %layers.1.out
}
// CHECK: %wk = weight.load : f32[16, 12]
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25, head_map = [1, 1]} : f32[B, T, 2, 8]
// REFUSED: layer 1: keeps its 4 query heads

// -----  both readers leave it: it goes
// RUN: budget-heads{keep={0: [2, 3], 1: [3]}, refit=false}

graph @both (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  %layers.1.wq = weight.load : f32[32, 12]
  %layers.1.q_flat = core.linear %layers.0.out, %layers.1.wq
  %layers.1.q = core.unflatten %layers.1.q_flat {parts = 4}
  %layers.1.q_rope = pos.rope %layers.1.q, %pos {base = 10000.0, channels = 8}
  %layers.1.ctx = attn.attend %layers.1.q_rope, %layers.0.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.wo = weight.load : f32[12, 32]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.wo
  %layers.1.out = core.add %layers.0.out, %layers.1.y
  return %layers.1.out
}
// CHECK: %wk = weight.take %wk.original {block = 8, indices = [1]} : f32[8, 12]
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25} : f32[B, T, 2, 8]
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25} : f32[B, T, 1, 8]

// -----  the refit of what is left
// RUN: budget-heads{keep={0: [1, 2]}}

graph @refit (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wo.kept = weight.take %wo.original {axis = 1, block = 8, indices = [1, 2]} : f32[12, 16]
// CHECK: %wo.gram = weight.moment a=%merged, b=%merged : f64[16, 16]
// CHECK: %wo.wanted = weight.moment a=%merged {source_b = "layers.*.out"} : f64[16, 12]
// CHECK: %wo = weight.refit %wo.gram, %wo.cross, %wo.kept : f32[12, 16]

// -----  all heads: nothing to do
// RUN: budget-heads{heads=4}

graph @all (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// REFUSED: layer 0: keeps its 4 query heads
// CHECK: %wq = weight.load : f32[32, 12]

// -----  a choice that needs data
// RUN: budget-heads{heads=2}

graph @open (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG121]: budget-heads: the choice by the score output-error needs data that is not at hand here

// -----  more heads than there are
// RUN: budget-heads{heads=6}

graph @more (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG115]: budget-heads: layer 0 has 4 query heads and cannot keep 6
// ERROR: --> pipeline:1:20   budget-heads{heads=6}
// ERROR: = help: legal for layer 0: 1 to 4

// -----  a head that is not there
// RUN: budget-heads{keep={0: [1, 4]}}

graph @absent (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG115]: budget-heads: layer 0 has 4 query heads and cannot keep head 4
// ERROR: = help: legal for layer 0: heads 0 to 3

// -----  a list of another length
// RUN: budget-heads{heads=[2, 2]}

graph @list (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  %layers.1.wq = weight.load : f32[32, 12]
  %layers.1.q_flat = core.linear %layers.0.out, %layers.1.wq
  %layers.1.q = core.unflatten %layers.1.q_flat {parts = 4}
  %layers.1.q_rope = pos.rope %layers.1.q, %pos {base = 10000.0, channels = 8}
  %layers.1.wk = weight.load : f32[16, 12]
  %layers.1.k_flat = core.linear %layers.0.out, %layers.1.wk
  %layers.1.k = core.unflatten %layers.1.k_flat {parts = 2}
  %layers.1.wv = weight.load : f32[16, 12]
  %layers.1.v_flat = core.linear %layers.0.out, %layers.1.wv
  %layers.1.v = core.unflatten %layers.1.v_flat {parts = 2}
  %layers.1.k_rope = pos.rope %layers.1.k, %pos {base = 10000.0, channels = 8}
  %layers.1.memory = state.kv %layers.1.k_rope, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q_rope, %layers.1.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.wo = weight.load : f32[12, 32]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.wo
  %layers.1.out = core.add %layers.0.out, %layers.1.y
  %layers.2.wq = weight.load : f32[32, 12]
  %layers.2.q_flat = core.linear %layers.1.out, %layers.2.wq
  %layers.2.q = core.unflatten %layers.2.q_flat {parts = 4}
  %layers.2.q_rope = pos.rope %layers.2.q, %pos {base = 10000.0, channels = 8}
  %layers.2.wk = weight.load : f32[16, 12]
  %layers.2.k_flat = core.linear %layers.1.out, %layers.2.wk
  %layers.2.k = core.unflatten %layers.2.k_flat {parts = 2}
  %layers.2.wv = weight.load : f32[16, 12]
  %layers.2.v_flat = core.linear %layers.1.out, %layers.2.wv
  %layers.2.v = core.unflatten %layers.2.v_flat {parts = 2}
  %layers.2.k_rope = pos.rope %layers.2.k, %pos {base = 10000.0, channels = 8}
  %layers.2.memory = state.kv %layers.2.k_rope, %layers.2.v
  %layers.2.ctx = attn.attend %layers.2.q_rope, %layers.2.memory {scale = 0.25}
  %layers.2.merged = core.flatten %layers.2.ctx
  %layers.2.wo = weight.load : f32[12, 32]
  %layers.2.y = core.linear %layers.2.merged, %layers.2.wo
  %layers.2.out = core.add %layers.1.out, %layers.2.y
  return %layers.2.out
}
// ERROR: error[RG118]: budget-heads: heads lists 2 layers, 3 are selected

// -----  a kind that the model does not have
// RUN: budget-heads{heads={sliding: 2}}

graph @kind (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG112]: budget-heads: no layer satisfies kind == sliding
// ERROR: = help: the model's attention layers are full (0)

// -----  heads over devices
// RUN: budget-heads{heads=3},constraints{tensor_parallel=[1, 2]}

graph @parallel (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG116]: budget-heads: layer 0: 3 query heads do not split evenly over 2 devices (constraints: tensor_parallel)
// ERROR: = help: legal for layer 0: 2, 4 query heads

// -----  KV heads over devices
// RUN: budget-heads{heads=4},constraints{tensor_parallel=[4]}

graph @kvparallel (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG116]: budget-heads: layer 0: 2 KV heads do not split evenly over 4 devices (constraints: tensor_parallel)
// ERROR: = help: legal for layer 0: no number of heads

// -----  a choice that fills one device only
// RUN: budget-heads{keep={0: [0, 1]}, refit=false},constraints{tensor_parallel=[2]}

graph @onesided (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG116]: budget-heads: layer 0: heads 0, 1 do not go evenly over 2 devices (constraints: tensor_parallel)

// -----  a norm over all heads at once
// RUN: budget-heads{keep={0: [1, 2]}, refit=false}

graph @flatnorm (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q_all = core.norm %layers.0.q_flat {eps = 1e-06}
  %layers.0.q = core.unflatten %layers.0.q_all {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG114]: budget-heads: layer 0: core.norm %layers.0.q_all makes the heads in a way that cannot be cut

// -----  queries that something else reads
// RUN: budget-heads{keep={0: [1, 2]}, refit=false}

graph @twice (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wv = weight.load : f32[16, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  %layers.0.extra = core.scale %layers.0.q {factor = 2.0}
  return %layers.0.out, %layers.0.extra
}
// ERROR: error[RG114]: budget-heads: layer 0: %layers.0.q is read by core.scale %layers.0.extra too
