// last-tokens-only: where no memory is extended any more, the tokens go on whose logits are wanted.
// RUN: last-tokens-only

graph @sharing (%x: f32[B, T, 16], %all: f32[B, T, 48], %pos: i64[B, T]) {
  %per.of_1 = core.slice %all {start = 16, stop = 32}
  %layers.0.w = weight.load : f32[16, 16]
  %layers.0.k_proj = core.linear %x, %layers.0.w
  %layers.0.k = core.unflatten %layers.0.k_proj {parts = 2}
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 100.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.k_rope, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.out = core.add %x, %layers.0.merged
  %layers.1.w = weight.load : f32[16, 16]
  %layers.1.given = core.add %layers.0.out, %per.of_1
  %layers.1.q_proj = core.linear %layers.1.given, %layers.1.w
  %layers.1.q = core.unflatten %layers.1.q_proj {parts = 2}
  %layers.1.q_rope = pos.rope %layers.1.q, %pos {base = 100.0, channels = 8}
  %layers.1.ctx = attn.attend %layers.1.q_rope, %layers.0.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.out = core.add %layers.0.out, %layers.1.merged
  %y = core.scale %layers.1.out {factor = 2.0}
  return %y
}
// CHECK: block @full_reader(%last.out: f32[B, L, 16], %last.per.of_1: f32[B, L, 16], %last.pos: i64[B, L], %memory: memory<f32; k [2, 8], v [2, 8]>) {
// CHECK: %ctx = attn.attend %q_rope, %memory {scale = 0.25} : f32[B, L, 2, 8]
// CHECK: %last.out = seq.last %layers.0.out : f32[B, L, 16]
// CHECK: %last.all = seq.last %all : f32[B, L, 48]
// CHECK: %last.per.of_1 = core.slice %last.all {start = 16, stop = 32} : f32[B, L, 16]
// CHECK: %last.pos = seq.last %pos : i64[B, L]
// CHECK: %y = core.scale %layers.1.out {factor = 2.0} : f32[B, L, 16]

// -----  after share-kv too, once
// RUN: share-kv{donor={1: 0}, refit=false},last-tokens-only,last-tokens-only

graph @twice (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.k
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %y = core.add %layers.0.ctx, %layers.1.ctx
  return %y
}
// ERROR: error[RG114]: last-tokens-only: layer 1: it sees the last tokens alone already

// -----  the last layer makes a memory

graph @own (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}
// ERROR: error[RG114]: last-tokens-only: layer 0: it extends a memory, and no layer follows that does not, so all tokens have to reach it
// ERROR: = help: let the last layers read earlier ones' memories, with share-kv

// -----  a later layer looks back through a convolution's tail

graph @convolution (%layers.0.x: f32[B, T, 8]) {
  %layers.0.tail = state.tail %layers.0.x {rows = 3}
  %layers.1.back = seq.shift %layers.0.tail
  %layers.1.out = core.add %layers.0.x, %layers.1.back
  return %layers.1.out
}
// ERROR: error[RG114]: last-tokens-only: layer 1: seq.shift %layers.1.back looks at earlier tokens in another way than attention to a memory
