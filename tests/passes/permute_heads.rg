// permute-heads and merge-duplicate-heads: rows, gates and columns of query heads go together.
// RUN: permute-heads

graph @sorted (%x: f32[B, T, 8], %layers.0.k: f32[B, T, 2, 4]) {
  %q.weight = weight.load : f32[16, 8]
  %layers.0.q_proj = core.linear %x, %q.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 4}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5, head_map = [1, 0, 0, 1]}
  %layers.0.merged = core.flatten %layers.0.ctx
  %o.weight = weight.load : f32[8, 16]
  %layers.0.out = core.linear %layers.0.merged, %o.weight
  return %layers.0.out
}
// CHECK: %q.weight = weight.take %q.weight.original {block = 4, indices = [1, 2, 0, 3]} : f32[16, 8]
// CHECK: %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5} : f32[B, T, 4, 4]
// CHECK: %o.weight = weight.take %o.weight.original {axis = 1, block = 4, indices = [1, 2, 0, 3]} : f32[8, 16]

// -----  heads that are in order already
graph @in_order (%x: f32[B, T, 8], %layers.0.k: f32[B, T, 2, 4]) {
  %q.weight = weight.load : f32[16, 8]
  %layers.0.q_proj = core.linear %x, %q.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 4}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  return %layers.0.ctx
}
// REFUSED: layer 0: its heads stay in order

// -----  a fit to the heads is a fit to them in their new order
// RUN: permute-heads{order={0: [1, 0]}}

graph @fitted (%x: f32[B, T, 8], %layers.0.k: f32[B, T, 1, 4]) {
  %q.weight = weight.load : f32[8, 8]
  %layers.0.q_proj = core.linear %x, %q.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  %layers.0.merged = core.flatten %layers.0.ctx
  %prior = weight.load {tensor = "o.weight"} : f32[8, 8]
  %gram = weight.moment a=%layers.0.merged, b=%layers.0.merged : f64[8, 8]
  %cross = weight.moment a=%layers.0.merged, b=%x : f64[8, 8]
  %o.weight = weight.refit %gram, %cross, %prior {ridge = 0.0001}
  %layers.0.out = core.linear %layers.0.merged, %o.weight
  return %layers.0.out
}
// CHECK: %o.weight.kept = weight.take %o.weight.original {axis = 1, block = 4, indices = [1, 0]} : f32[8, 8]
// CHECK: %o.weight = weight.refit %o.weight.gram, %o.weight.wanted, %o.weight.kept : f32[8, 8]

// -----  two heads that are one
// RUN: merge-duplicate-heads{heads={0: [[0, 1]]}}

graph @merged (%x: f32[B, T, 8], %layers.0.k: f32[B, T, 2, 4]) {
  %q.weight = weight.load : f32[16, 8]
  %layers.0.q_proj = core.linear %x, %q.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 4}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  %layers.0.merged = core.flatten %layers.0.ctx
  %o.weight = weight.load : f32[8, 16]
  %layers.0.out = core.linear %layers.0.merged, %o.weight
  return %layers.0.out
}
// CHECK: %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5, head_map = [0, 1, 1]} : f32[B, T, 3, 4]
// CHECK: %o.weight.sum = weight.combine %o.weight.kept, %o.weight.kept_2 {factors = [1.0, 1.0]} : f32[8, 4]
// CHECK: %o.weight.kept_3 = weight.take %o.weight.original {axis = 1, block = 4, indices = [2, 3]} : f32[8, 8]
// CHECK: %o.weight = weight.concat %o.weight.sum, %o.weight.kept_3 {axis = 1} : f32[8, 12]

// -----  channels of a query head that are for something else
// RUN: permute-heads{order={0: [1, 0]}}

graph @stray (%x: f32[B, T, 8], %layers.0.k: f32[B, T, 1, 4]) {
  %q.weight = weight.load : f32[12, 8]
  %layers.0.q_proj = core.linear %x, %q.weight
  %layers.0.both = core.unflatten %layers.0.q_proj {parts = 2}
  %layers.0.q = core.slice %layers.0.both {start = 0, stop = 4}
  %layers.0.rest = core.slice %layers.0.both {start = 4, stop = 6}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  %layers.0.merged = core.flatten %layers.0.ctx
  %o.weight = weight.load : f32[8, 8]
  %layers.0.out = core.linear %layers.0.merged, %o.weight
  return %layers.0.out, %layers.0.rest
}
// ERROR: error[RG114]: permute-heads: layer 0: core.slice %layers.0.rest takes channels of the query heads for something else
