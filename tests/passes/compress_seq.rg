// compress-seq: a window of tokens, and before it a row for every few, in one softmax
// RUN: compress-seq{rate=4, window=16, sinks=4, layers=1, refit=false}

graph @one (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// CHECK: %ctx = attn.attend %x_3, %memory {scale = 0.25} : f32[B, T, 4, 8]
// CHECK: %memory = state.kv %x, %x_2 {window = 19, first = 4} : memory<f32; k [2, 8], v [2, 8]; window 19, first 4>
// CHECK: %entries = state.compressed %row, %compressor.position_bias {rate = 4} : memory<f32; x [32]; every 4>
// CHECK: %entries_view = mem.view %entries, %entries_k, v=%entries_v : memory<f32; k [2, 8], v [2, 8]; every 4>
// CHECK: %ctx = attn.attend %x_3, %memory, entries=%entries_view {scale = 0.25, window = 19, first = 4, disjoint = true, entries_bias = 1.3862943611198906} : f32[B, T, 4, 8]
// REFUSED: layer 0: not among the layers

// -----  keys pooled before rotation turn to the middle of their tokens; both series of an overlap, one shut
// RUN: compress-seq{rate=2, window=16, keys=middle, overlap=true, mass=false, refit=false}

graph @middle (%pos: i64[B, T], %layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// CHECK: %compressor.position_previous = weight.fill {value = -40.0} : f32[2, 32]
// CHECK: %entries = state.compressed %entries_both, %compressor.position_bias {rate = 2, overlap = true} : memory<f32; x [32]; every 2>
// CHECK: %entries_k_rope = pos.rope %entries_k, %entries_at {base = 10000.0, channels = 8, offset = 0.5} : f32[B, S@layers.*.entries, 2, 8]
// CHECK: %ctx = attn.attend %x_3, %memory, entries=%entries_view {scale = 0.25, window = 17, disjoint = true} : f32[B, T, 4, 8]

// -----  gates and an index read what the projections read
// RUN: compress-seq{rate=4, window=16, gates=true, chosen=3, refit=false}

graph @gated (%layers.0.x: f32[B, T, 32], %layers.0.q: f32[B, T, 4, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %model.layers.0.self_attn.k_proj.weight = weight.load : f32[16, 32]
  %layers.0.k_proj = core.linear %layers.0.x, %model.layers.0.self_attn.k_proj.weight
  %layers.0.k = core.unflatten %layers.0.k_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// CHECK: %model.layers.*.self_attn.compressor.gate_proj.weight = weight.fill : f32[32, 32]
// CHECK: %entries = state.compressed %row, %model.layers.*.self_attn.compressor.position_bias, gates=%entries_gates {rate = 4} : memory<f32; x [32]; every 4>
// CHECK: %model.layers.*.self_attn.compressor.indexer.weights_proj.bias = weight.fill {value = 1.0} : f32[4]
// CHECK: %index_best = seq.index %x_3, %index_weights, %entries_view {scale = 0.25, chosen = 3, window = 19} : i64[B, T, 3]

// -----  tokens that stay as they are, and a block that is pooled in part
// RUN: compress-seq{rate=32, window=16, sinks=4, refit=false}

graph @parts (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// ERROR: error[RG106]: compress-seq: sinks is 4, out of range

// -----  a layer with a window sees nothing before it
// RUN: compress-seq{rate=4, window=16, refit=false}

graph @sliding (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v {window = 8}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 8}
  return %layers.0.ctx
}

// ERROR: error[RG114]: compress-seq: layer 0: it looks back 8 tokens, and what is before them is not seen

// -----  a memory of several layers
// RUN: compress-seq{rate=4, window=16, layers=0, refit=false}

graph @shared (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG114]: compress-seq: layer 0: %layers.0.memory is read by layers 0..1 together

// -----  gates need what keys and values are made of
// RUN: compress-seq{rate=4, window=16, gates=true, refit=false}

graph @unmade (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  return %layers.0.ctx
}

// ERROR: error[RG114]: compress-seq: layer 0: its keys and values come of no projection, whose input gates and an index would read
