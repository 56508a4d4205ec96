// merge-kv-heads: fewer key/value heads, layer by layer.
// RUN: merge-kv-heads{groups={0: [[0, 2], [1, 3]]}, refit=false}
// keys and values by maps fitted to statistics, queries and output by what undoes them, heads in order

graph @plain (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[32, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 4}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.wv = weight.load : f32[32, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wk.queries = weight.group_moments %wq.original, x=%x {groups = [0, 1, 2, 3], parts = 4} : f64[4, 8, 8]
// CHECK: %wk.heads = weight.joint_moment %wk.original, x=%x {parts = 4} : f64[32, 32]
// CHECK: %wk.down, %wk.up = weight.merge_heads %wk.heads, %wk.queries {groups = [0, 1, 0, 1], channels = 8, pairs = 4} : f64[16, 32], f64[4, 8, 8]
// CHECK: %wv.outputs = weight.group_gram %wo.original {groups = [0, 1, 2, 3], parts = 4} : f64[4, 8, 8]
// CHECK: %wv.down, %wv.up = weight.merge_heads %wv.heads, %wv.outputs {groups = [0, 1, 0, 1]} : f64[16, 32], f64[4, 8, 8]
// CHECK: %wq.turned = weight.matmul %wq.turn, %wq.heads : f64[4, 8, 12]
// CHECK: %wq = weight.take %wq.previous {block = 8, indices = [0, 2, 1, 3]} : f32[32, 12]
// CHECK: %wk = weight.cast %wk.product {dtype = "f32"} : f32[16, 12]
// CHECK: %k = core.unflatten %k_flat {parts = 2} : f32[B, T, 2, 8]
// CHECK: %memory = state.kv %k_rope, %v : memory<f32; k [2, 8], v [2, 8]>
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25} : f32[B, T, 4, 8]
// CHECK: %wo.product = weight.matmul %wo.by_head, %wo.up : f64[4, 12, 8]
// CHECK: %wo.sorted = weight.take %wo.flat {axis = 1, block = 8, indices = [0, 2, 1, 3]} : f64[12, 32]
// CHECK-NOT: refit

// -----  channels that do not turn mix; a gate of each channel keeps values apart; queries and gates come in order too
// RUN: merge-kv-heads{groups={0: [[0, 2], [1, 3]]}}

graph @gates (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 4}
  %layers.0.wk = weight.load : f32[32, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 4}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 4}
  %layers.0.wv = weight.load : f32[32, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wg = weight.load : f32[32, 12]
  %layers.0.g = core.linear %x, %layers.0.wg
  %layers.0.gate = core.activation %layers.0.g {kind = "sigmoid"}
  %layers.0.gated = core.mul %layers.0.merged, %layers.0.gate
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.gated, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wk.down, %wk.up = weight.merge_heads %wk.heads, %wk.queries {groups = [0, 1, 0, 1], channels = 4, pairs = 2} : f64[16, 32], f64[4, 8, 8]
// CHECK: %wv.down, %wv.up = weight.merge_heads %wv.heads, %wv.outputs {groups = [0, 1, 0, 1], mixing = false} : f64[16, 32], f64[4, 8, 8]
// CHECK: %wg = weight.take %wg.original {block = 8, indices = [0, 2, 1, 3]} : f32[32, 12]
// CHECK: %wo = weight.refit %wo.gram, %wo.cross, %wo.sorted.rounded : f32[12, 32]

// -----  a mean asks nothing of statistics, and folds under norms
// RUN: merge-kv-heads{heads=1, method=mean, refit=false}

graph @means (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.nq = weight.load : f32[8]
  %layers.0.q_norm = core.norm %layers.0.q, weight=%layers.0.nq {eps = 1e-06}
  %layers.0.q_rope = pos.rope %layers.0.q_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[32, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 4}
  %layers.0.nk = weight.load : f32[8]
  %layers.0.k_norm = core.norm %layers.0.k, weight=%layers.0.nk {eps = 1e-06}
  %layers.0.k_rope = pos.rope %layers.0.k_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wv = weight.load : f32[32, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wk.heads = weight.eye : f64[32, 32]
// CHECK: %wk.down, %wk.up = weight.merge_heads %wk.heads, %wk.readers {groups = [0, 0, 0, 0], method = "mean"} : f64[8, 32], f64[4, 8, 8]
// CHECK: %q_flat = core.linear %x, %wq : f32[B, T, 32]
// CHECK: %k_norm = core.norm %k, weight=%nk {eps = 1e-06} : f32[B, T, 1, 8]
// CHECK-NOT: moment

// -----  under norms, maps of keys and queries stand after them
// RUN: merge-kv-heads{heads=2, grouping=adjacent, refit=false}

graph @gauge (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.nq = weight.load : f32[8]
  %layers.0.q_norm = core.norm %layers.0.q, weight=%layers.0.nq {eps = 1e-06}
  %layers.0.q_rope = pos.rope %layers.0.q_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[32, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 4}
  %layers.0.nk = weight.load : f32[8]
  %layers.0.k_norm = core.norm %layers.0.k, weight=%layers.0.nk {eps = 1e-06}
  %layers.0.k_rope = pos.rope %layers.0.k_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wv = weight.load : f32[32, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wk.queries = weight.group_moments %wq, x=%x, norm=%nq {eps = 1e-06, groups = [0, 1, 2, 3], parts = 4} : f64[4, 8, 8]
// CHECK: %wk.heads = weight.joint_moment %wk, x=%x, norm=%nk {eps = 1e-06, parts = 4} : f64[32, 32]
// CHECK: %q_norm.turned = core.grouped_linear %q_norm, %wq_turn.weight : f32[B, T, 4, 8]
// CHECK: %q_rope = pos.rope %q_norm.turned, %pos {base = 10000.0, channels = 8} : f32[B, T, 4, 8]
// CHECK: %k_norm.merged = core.grouped_linear %k_norm.groups, %wk_merge.weight : f32[B, T, 2, 8]
// CHECK: %k_rope = pos.rope %k_norm.merged, %pos {base = 10000.0, channels = 8} : f32[B, T, 2, 8]

// -----  or before the norm of the keys, whose factor of each head is kept beside what is merged
// RUN: merge-kv-heads{heads=2, grouping=adjacent, norm=carry, refit=false}

graph @carry (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.nq = weight.load : f32[8]
  %layers.0.q_norm = core.norm %layers.0.q, weight=%layers.0.nq {eps = 1e-06}
  %layers.0.q_rope = pos.rope %layers.0.q_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[32, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 4}
  %layers.0.nk = weight.load : f32[8]
  %layers.0.k_norm = core.norm %layers.0.k, weight=%layers.0.nk {eps = 1e-06}
  %layers.0.k_rope = pos.rope %layers.0.k_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wv = weight.load : f32[32, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wk.power = weight.inverse_power %wk, x=%x {eps = 1e-06, parts = 4} : f64[4]
// CHECK: %wk.weighed = weight.scale %wk.queries, %wk.power : f64[4, 8, 8]
// CHECK: %wk.down, %wk.up = weight.merge_heads %wk.heads, %wk.weighed {groups = [0, 0, 1, 1], channels = 8, pairs = 4} : f64[16, 32], f64[4, 8, 8]
// CHECK: %k_rope = pos.rope %k_norm.merged, %pos {base = 10000.0, channels = 8} : f32[B, T, 2, 8]
// CHECK: %factors = core.inverse_rms %k {eps = 1e-06} : f32[B, T, 4]
// CHECK: %memory = state.rows %row : memory<f32; x [36]>
// CHECK-NOT: state.kv

// -----  or projections and norms are fitted to the scores
// RUN: merge-kv-heads{heads=2, grouping=adjacent, norm=stock, refit=false}

graph @scores (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.nq = weight.load : f32[8]
  %layers.0.q_norm = core.norm %layers.0.q, weight=%layers.0.nq {eps = 1e-06}
  %layers.0.q_rope = pos.rope %layers.0.q_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[32, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 4}
  %layers.0.nk = weight.load : f32[8]
  %layers.0.k_norm = core.norm %layers.0.k, weight=%layers.0.nk {eps = 1e-06}
  %layers.0.k_rope = pos.rope %layers.0.k_norm, %pos {base = 10000.0, channels = 8}
  %layers.0.wv = weight.load : f32[32, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// CHECK: %wk.read = weight.moment a=%x, b=%x : f64[12, 12]
// CHECK: %wq, %wk, %nq, %nk = weight.fit_scores %wk.read, %wq.original, %wk.original, %nq.original, %nk.original, %wk.down, %wk.up {groups = [0, 1, 2, 3], merged = [0, 0, 1, 1], eps = 1e-06, channels = 8, pairs = 4} : f32[32, 12], f32[16, 12], f32[8], f32[8]
// CHECK: %q_norm = core.norm %q, weight=%nq {eps = 1e-06} : f32[B, T, 4, 8]
// CHECK: %k_norm = core.norm %k, weight=%nk {eps = 1e-06} : f32[B, T, 2, 8]
// CHECK-NOT: grouped_linear

// -----  values that are normalised merge after it too, and fold nowhere
// RUN: merge-kv-heads{heads=2, grouping=adjacent, norm=stock}

graph @values (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.wq = weight.load : f32[32, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 4}
  %layers.0.q_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 8}
  %layers.0.wk = weight.load : f32[32, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 4}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.wv = weight.load : f32[32, 12]
  %layers.0.v_flat = core.linear %x, %layers.0.wv
  %layers.0.v = core.unflatten %layers.0.v_flat {parts = 4}
  %layers.0.v_norm = core.norm %layers.0.v {eps = 1e-06}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v_norm
  %layers.0.ctx = attn.attend %layers.0.q_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG114]: merge-kv-heads: layer 0: values go through core.norm %layers.0.v_norm, under which they do not fold; norm: gauge works

// -----  keys that are the values have no gauge of their own
// RUN: merge-kv-heads{heads=1, grouping=adjacent}

graph @one (%x: f32[B, T, 12]) {
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.wq = weight.load : f32[16, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 2}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 16]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG114]: merge-kv-heads: layer 0: its keys are its values, and what is one for both has no gauge of its own

// -----  nor have values that are made from the keys
// RUN: merge-kv-heads{heads=1, grouping=adjacent}

graph @common (%x: f32[B, T, 12]) {
  %layers.0.wk = weight.load : f32[16, 12]
  %layers.0.k_flat = core.linear %x, %layers.0.wk
  %layers.0.k = core.unflatten %layers.0.k_flat {parts = 2}
  %layers.0.k_norm = core.norm %layers.0.k {eps = 1e-06}
  %layers.0.v_norm = core.norm %layers.0.k {eps = 1e-06}
  %layers.0.wq = weight.load : f32[16, 12]
  %layers.0.q_flat = core.linear %x, %layers.0.wq
  %layers.0.q = core.unflatten %layers.0.q_flat {parts = 2}
  %layers.0.memory = state.kv %layers.0.k_norm, %layers.0.v_norm
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.wo = weight.load : f32[12, 16]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.wo
  %layers.0.out = core.add %x, %layers.0.y
  return %layers.0.out
}
// ERROR: error[RG114]: merge-kv-heads: layer 0: its values are made from its keys, and what is one for both has no gauge of its own
