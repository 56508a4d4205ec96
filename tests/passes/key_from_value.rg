// key-from-value: the values are kept, and of the keys what turns; the other channels are values times a weight.
// RUN: key-from-value

graph @partly_turned (%layers.0.x: f32[B, T, 1, 8], %layers.0.q: f32[B, T, 2, 8], %pos: i64[B, T]) {
  %layers.0.w = weight.load : f32[8]
  %layers.0.k_norm = core.norm %layers.0.x, weight=%layers.0.w {eps = 1e-06}
  %layers.0.k_rope = pos.rope %layers.0.k_norm, %pos {base = 100.0, channels = 8, pairs = 1}
  %layers.0.v_norm = core.norm %layers.0.x {eps = 1e-06}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v_norm
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 1.0}
  return %layers.0.ctx
}
// CHECK: %turned = core.slice %k_rope {start = 0, stop = 1} : f32[B, T, 1, 1]
// CHECK: %turned_2 = core.slice %k_rope {start = 4, stop = 5} : f32[B, T, 1, 1]
// CHECK: %row_heads = core.concat %v_norm, %turned, %turned_2 : f32[B, T, 1, 10]
// CHECK: %row = core.flatten %row_heads : f32[B, T, 10]
// CHECK: %memory = state.rows %row : memory<f32; x [10]>
// CHECK: %k_plain_rows = core.gain %v_rows, %w : f32[B, S@layers.*.memory, 1, 8]
// CHECK: %k_rows = core.concat %k_turned_rows, %k_still_rows, %k_turned_rows_2, %k_still_rows_2 : f32[B, S@layers.*.memory, 1, 8]
// CHECK: %view = mem.view %memory, %k_rows, v=%v_rows : memory<f32; k [1, 8], v [1, 8]>

// -----  the values alone, keys turned where they are read
// RUN: key-from-value{rotated=read}

graph @turned_when_read (%layers.0.x: f32[B, T, 1, 8], %layers.0.q: f32[B, T, 2, 8], %pos: i64[B, T]) {
  %layers.0.w = weight.load : f32[8]
  %layers.0.k_norm = core.norm %layers.0.x, weight=%layers.0.w {eps = 1e-06, offset = 1.0}
  %layers.0.k_rope = pos.rope %layers.0.k_norm, %pos {base = 100.0, channels = 8}
  %layers.0.v_norm = core.norm %layers.0.x {eps = 1e-06}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.v_norm {window = 16}
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 1.0, window = 16}
  return %layers.0.ctx
}
// CHECK: %memory = state.rows %row {window = 16} : memory<f32; x [8]; window 16>
// CHECK: %w.shifted = weight.combine %w, %w.one {factors = [1.0, 1.0]} : f32[8]
// CHECK: %k_plain_rows = core.gain %row_heads_rows, %w.shifted : f32[B, S@layers.*.memory, 1, 8]
// CHECK: %rows_at = mem.pos %memory : i64[B, S@layers.*.memory]
// CHECK: %k_rope_rows = pos.rope %k_plain_rows, %rows_at {base = 100.0, channels = 8} : f32[B, S@layers.*.memory, 1, 8]
// CHECK-NOT: k_norm =

// -----  keys that are values, normed and turned; another layer reads them too
// RUN: key-from-value{rotated=read}

graph @of_raw_values (%layers.0.x: f32[B, T, 2, 8], %layers.0.q: f32[B, T, 2, 8], %layers.1.q: f32[B, T, 2, 8], %pos: i64[B, T]) {
  %layers.0.w = weight.load : f32[8]
  %layers.0.k_norm = core.norm %layers.0.x, weight=%layers.0.w {eps = 1e-06}
  %layers.0.k_rope = pos.rope %layers.0.k_norm, %pos {base = 100.0, channels = 4}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.x
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 1.0}
  %layers.1.ctx = attn.attend %layers.1.q, %layers.0.memory {scale = 1.0}
  return %layers.0.ctx, %layers.1.ctx
}
// CHECK: %memory = state.rows %row : memory<f32; x [16]>
// CHECK: %k_norm_rows = core.norm %row_heads_rows, weight=%w {eps = 1e-06} : f32[B, S@layers.*.memory, 2, 8]
// CHECK: %rows = mem.read %memory : f32[B, S@layers.0.memory, 16]

// -----  keys of their own

graph @own_keys (%layers.0.k: f32[B, T, 1, 8], %layers.0.v: f32[B, T, 1, 8], %layers.0.q: f32[B, T, 2, 8]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 1.0}
  return %layers.0.ctx
}
// ERROR: error[RG114]: key-from-value: layer 0: its keys %layers.0.k do not come from its values %layers.0.v
// ERROR: = help: this pass needs keys and values that come from one projection

// -----  norms that divide by other numbers

graph @other_eps (%layers.0.x: f32[B, T, 1, 8], %layers.0.q: f32[B, T, 2, 8]) {
  %layers.0.k_norm = core.norm %layers.0.x {eps = 1e-05}
  %layers.0.v_norm = core.norm %layers.0.x {eps = 1e-06}
  %layers.0.memory = state.kv %layers.0.k_norm, %layers.0.v_norm
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 1.0}
  return %layers.0.ctx
}
// ERROR: error[RG114]: key-from-value: layer 0: its keys %layers.0.k_norm do not come from its values %layers.0.v_norm

// -----  all channels turn

graph @all_turn (%layers.0.x: f32[B, T, 1, 8], %layers.0.q: f32[B, T, 2, 8], %pos: i64[B, T]) {
  %layers.0.k_rope = pos.rope %layers.0.x, %pos {base = 100.0, channels = 8}
  %layers.0.memory = state.kv %layers.0.k_rope, %layers.0.x
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 1.0}
  return %layers.0.ctx
}
// ERROR: error[RG114]: key-from-value: layer 0: all channels of its keys turn, so that nothing is saved by keeping them beside the values
// ERROR: = help: use rotated: read, which keeps the values alone
