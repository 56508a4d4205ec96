// window: attention to the last tokens and the first ones; the memory keeps no more
// RUN: window{window=16, sinks=2, layers=1, refit=false}

graph @one (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// CHECK: %memory = state.kv %x, %x_2 : memory<f32; k [2, 8], v [2, 8]>
// CHECK: %memory = state.kv %x, %x_2 {window = 16, first = 2} : memory<f32; k [2, 8], v [2, 8]; window 16, first 2>
// CHECK: %ctx = attn.attend %x_3, %memory {scale = 0.25, window = 16, first = 2} : f32[B, T, 4, 8]
// REFUSED: layer 0: not among the layers

// -----  a memory that another layer reads in full keeps everything
// RUN: window{window=16, sinks=0, layers=1, refit=false}

graph @shared (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// CHECK: %memory = state.kv %x, %x_2 : memory<f32; k [2, 8], v [2, 8]>
// CHECK: %ctx = attn.attend %x, %memory {scale = 0.25, window = 16} : f32[B, T, 4, 8]

// -----  some KV heads: an attention and a memory of their own
// RUN: window{window=16, sinks=2, local={0: [0]}, refit=false}

graph @split (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// CHECK: %memory_far = state.kv %k_far, %v_far : memory<f32; k [1, 8], v [1, 8]>
// CHECK: %memory_near = state.kv %k_near, %v_near {window = 16, first = 2} : memory<f32; k [1, 8], v [1, 8]; window 16, first 2>
// CHECK: %ctx_near = attn.attend %q_near, %memory_near {scale = 0.25, window = 16, first = 2} : f32[B, T, 2, 8]
// CHECK: %ctx_ordered = attn.pick %ctx_heads {heads = [2, 3, 0, 1]} : f32[B, T, 4, 8]
// CHECK-NOT: %memory =

// -----  by default all layers that look further
// RUN: window{window=16, sinks=0, refit=false}

graph @further (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v {window = 8}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 8}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// CHECK: %ctx = attn.attend %x_3, %memory {scale = 0.25, window = 8} : f32[B, T, 4, 8]
// CHECK: %ctx = attn.attend %x_3, %memory {scale = 0.25, window = 16} : f32[B, T, 4, 8]
// REFUSED: layer 0: not among the layers

// -----  a layer that is named and looks back no further
// RUN: window{window=16, layers=0, refit=false}

graph @already (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v {window = 8}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 8}
  return %layers.0.ctx
}

// ERROR: error[RG114]: window: layer 0: it looks back 8 tokens already

// -----  no layer looks further
// RUN: window{window=16, refit=false}

graph @none (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v {window = 8}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 8}
  return %layers.0.ctx
}

// ERROR: error[RG106]: window: window is 16, out of range

// -----  a choice needs data
// RUN: window{window=16, choose=1, refit=false}

graph @undecided (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG121]: window: the choice by measured KL needs data that is not at hand here

// -----  heads of a memory with other readers stay together
// RUN: window{window=16, local={1: [0]}, refit=false}

graph @split_shared (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG114]: window: layer 1: its memory has other readers, which see all heads
