// share-kv: a layer reads an earlier layer's memory; then nobody reads what made its own.
// RUN: share-kv{donor={1: 0}, refit=false}

graph @pair (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// CHECK: layers 0 = @full(%layers.0.k, %layers.0.v, %layers.0.q)
// CHECK: layers 1 = @full_reader(%layers.1.q, %-1.memory)
// REFUSED: layer 0: not among the readers

// -----  groups: the first layer of each is the donor
// RUN: share-kv{layers=[[0, 1], [2, 3]], refit=false}

graph @groups (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8], %layers.2.q: f32[B, T, 4, 8], %layers.2.k: f32[B, T, 2, 8], %layers.2.v: f32[B, T, 2, 8], %layers.3.q: f32[B, T, 4, 8], %layers.3.k: f32[B, T, 2, 8], %layers.3.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.2.memory = state.kv %layers.2.k, %layers.2.v
  %layers.2.ctx = attn.attend %layers.2.q, %layers.2.memory {scale = 0.25}
  %layers.3.memory = state.kv %layers.3.k, %layers.3.v
  %layers.3.ctx = attn.attend %layers.3.q, %layers.3.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx, %layers.2.ctx, %layers.3.ctx
}

// CHECK: layers 1 = @full_reader(%layers.1.q, %-1.memory)
// CHECK: layers 3 = @full_reader(%layers.3.q, %-1.memory)

// -----  groups by size, of one kind each
// RUN: share-kv{groups=2, refit=false}

graph @sizes (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8], %layers.2.q: f32[B, T, 4, 8], %layers.2.k: f32[B, T, 2, 8], %layers.2.v: f32[B, T, 2, 8], %layers.3.q: f32[B, T, 4, 8], %layers.3.k: f32[B, T, 2, 8], %layers.3.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v {window = 16}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 16}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.2.memory = state.kv %layers.2.k, %layers.2.v {window = 16}
  %layers.2.ctx = attn.attend %layers.2.q, %layers.2.memory {scale = 0.25, window = 16}
  %layers.3.memory = state.kv %layers.3.k, %layers.3.v
  %layers.3.ctx = attn.attend %layers.3.q, %layers.3.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx, %layers.2.ctx, %layers.3.ctx
}

// CHECK: layers 2 = @sliding_reader(%layers.2.q, %layers.0.memory)
// CHECK: layers 3 = @full_reader(%layers.3.q, %layers.1.memory)

// -----  nearest: the last earlier layer that fits and is no reader itself
// RUN: share-kv{layers="2..3", refit=false}

graph @nearest (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8], %layers.2.q: f32[B, T, 4, 8], %layers.2.k: f32[B, T, 2, 8], %layers.2.v: f32[B, T, 2, 8], %layers.3.q: f32[B, T, 4, 8], %layers.3.k: f32[B, T, 2, 8], %layers.3.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v {window = 16}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 16}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.2.memory = state.kv %layers.2.k, %layers.2.v {window = 16}
  %layers.2.ctx = attn.attend %layers.2.q, %layers.2.memory {scale = 0.25, window = 16}
  %layers.3.memory = state.kv %layers.3.k, %layers.3.v
  %layers.3.ctx = attn.attend %layers.3.q, %layers.3.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx, %layers.2.ctx, %layers.3.ctx
}

// CHECK: layers 2 = @sliding_reader(%layers.2.q, %layers.0.memory)
// CHECK: layers 3 = @full_reader(%layers.3.q, %layers.1.memory)

// -----  a predicate leaves out what has no donor
// RUN: share-kv{layers=all, refit=false}

graph @predicate (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8], %layers.2.q: f32[B, T, 4, 8], %layers.2.k: f32[B, T, 2, 8], %layers.2.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.2.memory = state.kv %layers.2.k, %layers.2.v
  %layers.2.ctx = attn.attend %layers.2.q, %layers.2.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx, %layers.2.ctx
}

// CHECK: layers 1 = @full_reader(%layers.1.q, %-1.memory)
// CHECK: layers 2 = @full_reader(%layers.2.q, %layers.0.memory)
// REFUSED: layer 0: not among the readers

// -----  chains collapse: 2 reads 1, which reads 0
// RUN: share-kv{donor={1: 0, 2: 1}, refit=false}

graph @chain (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8], %layers.2.q: f32[B, T, 4, 8], %layers.2.k: f32[B, T, 2, 8], %layers.2.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.2.memory = state.kv %layers.2.k, %layers.2.v
  %layers.2.ctx = attn.attend %layers.2.q, %layers.2.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx, %layers.2.ctx
}

// CHECK: layers 2 = @full_reader(%layers.2.q, %layers.0.memory)

// -----  who read a reader's memory before reads the donor's too
// RUN: share-kv{donor={1: 0}, refit=false}

graph @collapse (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8], %layers.2.q: f32[B, T, 4, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.2.ctx = attn.attend %layers.2.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx, %layers.2.ctx
}

// CHECK: layers 2 = @full_reader(%layers.2.q, %layers.0.memory)

// -----  a narrower window may read a wider one, which then keeps what it kept
// RUN: share-kv{donor={1: 0}, refit=false}

graph @narrow (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v {window = 32}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 32}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v {window = 16}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25, window = 16}
  return %layers.0.ctx, %layers.1.ctx
}

// CHECK: %memory = state.kv %x, %x_2 {window = 32} : memory<f32; k [2, 8], v [2, 8]; window 32>
// CHECK: %ctx = attn.attend %x, %memory {scale = 0.25, window = 16} : f32[B, T, 4, 8]

// -----  but not a wider one
// RUN: share-kv{donor={1: 0}, refit=false}

graph @wide (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v {window = 16}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25, window = 16}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v {window = 32}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25, window = 32}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG104]: share-kv: layer 1 (sliding, window 32) cannot read the memory of layer 0 (sliding, window 16)
// ERROR: = note: the reader looks back 32 rows, the donor keeps 16

// -----  a window and none
// RUN: share-kv{donor={3: 0}, refit=false}

graph @kinds (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8], %layers.2.q: f32[B, T, 4, 8], %layers.2.k: f32[B, T, 2, 8], %layers.2.v: f32[B, T, 2, 8], %layers.3.q: f32[B, T, 4, 8], %layers.3.k: f32[B, T, 2, 8], %layers.3.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v {window = 16}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25, window = 16}
  %layers.2.memory = state.kv %layers.2.k, %layers.2.v {window = 16}
  %layers.2.ctx = attn.attend %layers.2.q, %layers.2.memory {scale = 0.25, window = 16}
  %layers.3.memory = state.kv %layers.3.k, %layers.3.v {window = 16}
  %layers.3.ctx = attn.attend %layers.3.q, %layers.3.memory {scale = 0.25, window = 16}
  return %layers.0.ctx, %layers.1.ctx, %layers.2.ctx, %layers.3.ctx
}

// ERROR: error[RG104]: share-kv: layer 3 (sliding, window 16) cannot read the memory of layer 0 (full)
// ERROR: --> pipeline:1:16   share-kv{donor={3: 0}, refit=false}
// ERROR: = note: a reader needs its donor's attention kind, window, KV heads, head width and rotary base
// ERROR: = help: layer 3 may read 1 or 2

// -----  other KV heads
// RUN: share-kv{donor={1: 0}, refit=false}

graph @rows (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 4, 8], %layers.1.v: f32[B, T, 4, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: = note: their rows differ: memory<f32; k [4, 8], v [4, 8]> and memory<f32; k [2, 8], v [2, 8]>
// ERROR: = help: layer 1 has no legal donor

// -----  another rotary base
// RUN: share-kv{donor={2: 0}, refit=false}

graph @rotation (%pos: i64[B, T], %layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8], %layers.2.q: f32[B, T, 4, 8], %layers.2.k: f32[B, T, 2, 8], %layers.2.v: f32[B, T, 2, 8]) {
  %layers.0.k_rope = pos.rope %layers.0.k, %pos {base = 10000.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.k_rope = pos.rope %layers.1.k, %pos {base = 500000.0, channels = 8}
  %layers.1.memory = state.kv %layers.1.k_rope, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.2.k_rope = pos.rope %layers.2.k, %pos {base = 500000.0, channels = 8}
  %layers.2.memory = state.kv %layers.2.k_rope, %layers.2.v
  %layers.2.ctx = attn.attend %layers.2.q, %layers.2.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx, %layers.2.ctx
}

// ERROR: = note: their keys are rotated differently: rotary base 500000, channels 8 and rotary base 10000, channels 8
// ERROR: = help: layer 2 may read 1

// -----  a donor after its reader
// RUN: share-kv{donor={0: 1}, refit=false}

graph @later (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG104]: share-kv: layer 0 (full) cannot read the memory of layer 1 (full)
// ERROR: = note: layer 1 does not come before layer 0

// -----  a first layer has nobody before it
// RUN: share-kv{layers="0..1", refit=false}

graph @first (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG119]: share-kv: layer 0 (full) has no earlier memory to read
// ERROR: = help: leave layer 0 out of layers; layers that have one: 1

// -----  layers that are not there
// RUN: share-kv{layers="1..7", refit=false}

graph @missing (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG111]: share-kv: there is no layer 7
// ERROR: --> pipeline:1:17   share-kv{layers="1..7", refit=false}
// ERROR: = help: the model has layers 0 to 1

// -----  no layer of that kind
// RUN: share-kv{layers="kind == sliding", refit=false}

graph @empty (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG112]: share-kv: no layer satisfies kind == sliding
// ERROR: = help: the model's attention layers are full (0..1)

// -----  a refit needs an output projection
// RUN: share-kv{donor={1: 0}}

graph @bare (%layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}

// ERROR: error[RG114]: share-kv: layer 1: %layers.1.ctx is read by 0 ops, so it has no single output projection
// ERROR: = help: leave the layer out, or use refit: false

// -----  the refit: statistics of what the projection reads, towards the original's residual stream
// RUN: share-kv{donor={1: 0}}

graph @refit (%x: f32[B, T, 12], %layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.o = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.o
  %layers.0.out = core.add %x, %layers.0.y
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.o = weight.load : f32[12, 32]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.o
  %layers.1.out = core.add %layers.0.out, %layers.1.y
  return %layers.1.out
}
// CHECK: %o.original = weight.load {tensor = "layers.*.o"} : f32[12, 32]
// CHECK: %o.gram = weight.moment a=%merged, b=%merged : f64[32, 32]
// CHECK: %o.wanted = weight.moment a=%merged {source_b = "layers.*.out"} : f64[32, 12]
// CHECK: %o.entering = weight.moment a=%merged, b=%x_2 : f64[32, 12]
// CHECK: %o.cross = weight.combine %o.wanted, %o.entering {factors = [1.0, -1.0]} : f64[32, 12]
// CHECK: %o = weight.refit %o.gram, %o.cross, %o.original : f32[12, 32]
// CHECK: %y = core.linear %merged, %o : f32[B, T, 12]

// -----  without a refit the output projection turns to the donor's values, by a map for each KV head
// RUN: share-kv{donor={1: 0}, level=gauge, refit=false}

graph @turned (%x: f32[B, T, 12], %layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.0.merged = core.flatten %layers.0.ctx
  %layers.0.o = weight.load : f32[12, 32]
  %layers.0.y = core.linear %layers.0.merged, %layers.0.o
  %layers.0.out = core.add %x, %layers.0.y
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.o = weight.load : f32[12, 32]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.o
  %layers.1.out = core.add %layers.0.out, %layers.1.y
  return %layers.1.out
}
// CHECK: %o.values = weight.moment a=%x_2, b=%x_2 : f64[16, 16]
// CHECK: %o.own_values = weight.moment a=%x_2 {source_b = "layers.*.v"} : f64[16, 16]
// CHECK: %o = weight.align_values %o.original, %o.values, %o.own_values {own = [0, 0, 1, 1], donor = [0, 0, 1, 1]} : f32[12, 32]

// -----  the same, done again with other options: the new fit replaces the old one
// RUN: share-kv{donor={1: 0}},share-kv{donor={1: 0}, ridge=0.5},budget-heads{keep={1: [1, 2]}, refit=false}

graph @again (%x: f32[B, T, 12], %layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.x: f32[B, T, 6], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.wq = weight.load : f32[32, 6]
  %layers.1.flat = core.linear %layers.1.x, %layers.1.wq
  %layers.1.q = core.unflatten %layers.1.flat {parts = 4}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.o = weight.load : f32[12, 32]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.o
  %layers.1.out = core.add %x, %layers.1.y
  return %layers.0.ctx, %layers.1.out
}
// REFUSED: layer 1: it reads %layers.0.memory already
// CHECK: %o.kept = weight.take %o.original {axis = 1, block = 8, indices = [1, 2]} : f32[12, 16]
// CHECK: %o = weight.refit %o.gram, %o.cross, %o.kept : f32[12, 16]
// CHECK-NOT: gram_2

// -----  what stands between the projection and the stream: only the original's own result can be the target
// RUN: share-kv{donor={1: 0}, target=original}

graph @normed (%x: f32[B, T, 12], %layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.o = weight.load : f32[12, 32]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.o
  %layers.1.norm = core.norm %layers.1.y {eps = 1e-06}
  %layers.1.out = core.add %x, %layers.1.norm
  return %layers.0.ctx, %layers.1.out
}
// CHECK: %o.wanted = weight.moment a=%merged {source_b = "layers.*.y"} : f64[32, 12]
// CHECK: %o = weight.refit %o.gram, %o.wanted, %o.original : f32[12, 32]

// -----  so a drift aims at that too
// RUN: share-kv{donor={1: 0}}

graph @drift (%x: f32[B, T, 12], %layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.o = weight.load : f32[12, 32]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.o
  %layers.1.norm = core.norm %layers.1.y {eps = 1e-06}
  %layers.1.out = core.add %x, %layers.1.norm
  return %layers.0.ctx, %layers.1.out
}
// CHECK: %o.wanted = weight.moment a=%merged {source_b = "layers.*.y"} : f64[32, 12]

// -----  a bias is refused
// RUN: share-kv{donor={1: 0}}

graph @bias (%x: f32[B, T, 12], %layers.0.q: f32[B, T, 4, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 4, 8], %layers.1.k: f32[B, T, 2, 8], %layers.1.v: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.memory = state.kv %layers.1.k, %layers.1.v
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.25}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.o = weight.load : f32[12, 32]
  %layers.1.b = weight.load : f32[12]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.o, bias=%layers.1.b
  %layers.1.out = core.add %x, %layers.1.y
  return %layers.0.ctx, %layers.1.out
}
// ERROR: error[RG114]: share-kv: layer 1: the output projection core.linear %layers.1.y has a bias, which a refit does not fit

// -----  queries turn towards the donor's keys; the query norm's weight moves up to where the fit reads it
// RUN: share-kv{donor={1: 0}}

graph @queries (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.q = core.unflatten %x {parts = 3}
  %layers.0.k_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.q
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  %layers.1.wq = weight.load : f32[12, 12]
  %layers.1.bq = weight.load : f32[12]
  %layers.1.q_proj = core.linear %x, %layers.1.wq, bias=%layers.1.bq
  %layers.1.q = core.unflatten %layers.1.q_proj {parts = 3}
  %layers.1.wn = weight.load : f32[4]
  %layers.1.q_norm = core.norm %layers.1.q, weight=%layers.1.wn {eps = 1e-06}
  %layers.1.q_rope = pos.rope %layers.1.q_norm, %pos {base = 10000.0, channels = 4}
  %layers.1.k = core.unflatten %x {parts = 3}
  %layers.1.k_rope = pos.rope %layers.1.k, %pos {base = 10000.0, channels = 4}
  %layers.1.memory = state.kv %layers.1.k_rope, %layers.1.k
  %layers.1.ctx = attn.attend %layers.1.q_rope, %layers.1.memory {scale = 0.5}
  %layers.1.merged = core.flatten %layers.1.ctx
  %layers.1.wo = weight.load : f32[12, 12]
  %layers.1.y = core.linear %layers.1.merged, %layers.1.wo
  %layers.1.out = core.add %x, %layers.1.y
  return %layers.0.ctx, %layers.1.out
}
// CHECK: %wq.keys = weight.moment a=%x, b=%x : f64[12, 12]
// CHECK: %wq.own_keys = weight.moment a=%x {source_b = "layers.*.k"} : f64[12, 12]
// CHECK: %wn = weight.load : f32[4]
// CHECK: %wq = weight.align %wq.original, %wq.keys, %wq.own_keys, norm=%wn {own = [0, 1, 2], donor = [0, 1, 2], channels = 4} : f32[12, 12]
// CHECK: %bq = weight.align %bq.original, %wq.keys, %wq.own_keys, norm=%wn {own = [0, 1, 2], donor = [0, 1, 2], channels = 4} : f32[12]
// CHECK: %q_proj = core.linear %x_2, %wq, bias=%bq : f32[B, T, 12]

// -----  each head asks for all heads of the donor at once, turned one by one, and gets values of its own back
// RUN: share-kv{donor={1: 0}, level=cross, refit=false}

graph @across (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.q = core.unflatten %x {parts = 3}
  %layers.0.k_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 2}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.q
  %layers.0.ctx = attn.attend %layers.0.k_rope, %layers.0.memory {scale = 0.5}
  %layers.1.q = core.unflatten %x {parts = 3}
  %layers.1.q_rope = pos.rope %layers.1.q, %pos {base = 10000.0, channels = 2}
  %layers.1.k = core.unflatten %x {parts = 3}
  %layers.1.k_rope = pos.rope %layers.1.k, %pos {base = 10000.0, channels = 2}
  %layers.1.memory = state.kv %layers.1.k_rope, %layers.1.k
  %layers.1.ctx = attn.attend %layers.1.q_rope, %layers.1.memory {scale = 0.5}
  return %layers.0.ctx, %layers.1.ctx
}
// CHECK: %q_across.weight.wanted = weight.moment a=%x_2 {source_b = "layers.*.k"} : f64[12, 12]
// CHECK: %q_across.weight.fitted = weight.align_across %q_across.weight.gram, %q_across.weight.wanted {width = 4, channels = 2} : f64[12, 12]
// CHECK: %v_across.weight.fitted = weight.refit %v_across.weight.gram, %v_across.weight.wanted, %v_across.weight.whole : f64[12, 12]
// CHECK: %v_across = core.unflatten %v_across_flat {parts = 1} : f32[B, S@layers.0.memory, 1, 12]
// CHECK: %q_across = core.grouped_linear %q, %q_across.weight {transposed = true} : f32[B, T, 3, 12]
// CHECK: %q_split = core.unflatten %q_split_flat {parts = 9} : f32[B, T, 9, 4]
// CHECK: %ctx_across = attn.attend %q_whole, %view {scale = 0.5} : f32[B, T, 3, 12]
// CHECK: %ctx = core.grouped_linear %ctx_across, %v_across.weight : f32[B, T, 3, 4]

// -----  queries that are not turned as keys are cannot ask for others
// RUN: share-kv{donor={1: 0}, level=cross, refit=false}

graph @unturned (%x: f32[B, T, 12], %pos: i64[B, T]) {
  %layers.0.q = core.unflatten %x {parts = 3}
  %layers.0.k_rope = pos.rope %layers.0.q, %pos {base = 10000.0, channels = 2}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.q
  %layers.0.ctx = attn.attend %layers.0.k_rope, %layers.0.memory {scale = 0.5}
  %layers.1.q = core.unflatten %x {parts = 3}
  %layers.1.q_rope = pos.rope %layers.1.q, %pos {base = 10000.0, channels = 2}
  %layers.1.k = core.unflatten %x {parts = 3}
  %layers.1.k_rope = pos.rope %layers.1.k, %pos {base = 10000.0, channels = 2}
  %layers.1.memory = state.kv %layers.1.k_rope, %layers.1.k
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.memory {scale = 0.5}
  return %layers.0.ctx, %layers.1.ctx
}
// ERROR: error[RG114]: share-kv: layer 1: queries and keys are turned differently
