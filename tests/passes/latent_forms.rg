// absorb-mla and expand-mla: the same rows, the same two matrices, one form of attention or the other.
// RUN: absorb-mla

graph @expanded (%layers.0.row: f32[B, T, 12], %layers.0.q_plain: f32[B, T, 2, 6], %layers.0.q_turned: f32[B, T, 2, 4]) {
  %layers.0.kv_b = weight.load : f32[22, 8]
  %layers.0.memory = state.rows %layers.0.row
  %layers.0.q_whole = core.concat %layers.0.q_plain, %layers.0.q_turned
  %layers.0.rows = mem.read %layers.0.memory
  %layers.0.row_latent = core.slice %layers.0.rows {start = 0, stop = 8}
  %layers.0.row_key = core.slice %layers.0.rows {start = 8, stop = 12}
  %layers.0.uk = weight.slice_each %layers.0.kv_b {parts = 2, start = 0, stop = 6}
  %layers.0.k_b = core.linear %layers.0.row_latent, %layers.0.uk
  %layers.0.k_rows = core.unflatten %layers.0.k_b {parts = 2}
  %layers.0.k_shared_rows = core.repeat %layers.0.row_key {parts = 2}
  %layers.0.k = core.concat %layers.0.k_rows, %layers.0.k_shared_rows
  %layers.0.uv = weight.slice_each %layers.0.kv_b {parts = 2, start = 6, stop = 11}
  %layers.0.v_b = core.linear %layers.0.row_latent, %layers.0.uv
  %layers.0.v_rows = core.unflatten %layers.0.v_b {parts = 2}
  %layers.0.view = mem.view %layers.0.memory, %layers.0.k, v=%layers.0.v_rows
  %layers.0.ctx = attn.attend %layers.0.q_whole, %layers.0.view {scale = 0.25}
  return %layers.0.ctx
}
// CHECK: %memory = state.rows %x : memory<f32; x [12]>
// CHECK: %rows = mem.read %memory : f32[B, S@layers.*.memory, 12]
// CHECK: %k = core.unflatten %rows {parts = 1} : f32[B, S@layers.*.memory, 1, 12]
// CHECK: %v = core.slice %k {start = 0, stop = 8} : f32[B, S@layers.*.memory, 1, 8]
// CHECK: %view = mem.view %memory, %k, v=%v : memory<f32; k [1, 12], v [1, 8]>
// CHECK: %q_absorbed = core.grouped_linear %x_2, %uk {transposed = true} : f32[B, T, 2, 8]
// CHECK: %q_whole = core.concat %q_absorbed, %x_3 : f32[B, T, 2, 12]
// CHECK: %ctx_latent = attn.attend %q_whole, %view {scale = 0.25} : f32[B, T, 2, 8]
// CHECK: %ctx = core.grouped_linear %ctx_latent, %uv : f32[B, T, 2, 5]

// -----  and back
// RUN: expand-mla

graph @absorbed (%layers.0.row: f32[B, T, 12], %layers.0.q_plain: f32[B, T, 2, 6], %layers.0.q_turned: f32[B, T, 2, 4]) {
  %layers.0.uk = weight.load : f32[12, 8]
  %layers.0.uv = weight.load : f32[10, 8]
  %layers.0.memory = state.rows %layers.0.row
  %layers.0.rows = mem.read %layers.0.memory
  %layers.0.k = core.unflatten %layers.0.rows {parts = 1}
  %layers.0.v = core.slice %layers.0.k {start = 0, stop = 8}
  %layers.0.view = mem.view %layers.0.memory, %layers.0.k, v=%layers.0.v
  %layers.0.q_latent = core.grouped_linear %layers.0.q_plain, %layers.0.uk {transposed = true}
  %layers.0.q_whole = core.concat %layers.0.q_latent, %layers.0.q_turned
  %layers.0.ctx_latent = attn.attend %layers.0.q_whole, %layers.0.view {scale = 0.25}
  %layers.0.ctx = core.grouped_linear %layers.0.ctx_latent, %layers.0.uv
  return %layers.0.ctx
}
// CHECK: %k_b = core.linear %row_latent, %uk : f32[B, S@layers.*.memory, 12]
// CHECK: %k_rows = core.unflatten %k_b {parts = 2} : f32[B, S@layers.*.memory, 2, 6]
// CHECK: %k_shared_rows = core.repeat %row_key {parts = 2} : f32[B, S@layers.*.memory, 2, 4]
// CHECK: %k = core.concat %k_rows, %k_shared_rows : f32[B, S@layers.*.memory, 2, 10]
// CHECK: %v_b = core.linear %row_latent, %uv : f32[B, S@layers.*.memory, 10]
// CHECK: %v_rows = core.unflatten %v_b {parts = 2} : f32[B, S@layers.*.memory, 2, 5]
// CHECK: %ctx = attn.attend %q_whole, %view {scale = 0.25} : f32[B, T, 2, 5]
// CHECK-NOT: grouped_linear

// -----  rows that are a latent and nothing else, and a recipe that goes there and back
// RUN: absorb-mla,expand-mla,absorb-mla

graph @no_shared_key (%layers.0.row: f32[B, T, 8], %layers.0.q: f32[B, T, 2, 6]) {
  %layers.0.uk = weight.load : f32[12, 8]
  %layers.0.uv = weight.load : f32[10, 8]
  %layers.0.memory = state.rows %layers.0.row
  %layers.0.rows = mem.read %layers.0.memory
  %layers.0.k_b = core.linear %layers.0.rows, %layers.0.uk
  %layers.0.k_rows = core.unflatten %layers.0.k_b {parts = 2}
  %layers.0.v_b = core.linear %layers.0.rows, %layers.0.uv
  %layers.0.v_rows = core.unflatten %layers.0.v_b {parts = 2}
  %layers.0.view = mem.view %layers.0.memory, %layers.0.k_rows, v=%layers.0.v_rows
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.view {scale = 0.25, softcap = 3.0}
  return %layers.0.ctx
}
// CHECK: %q_absorbed = core.grouped_linear %x_2, %uk {transposed = true} : f32[B, T, 2, 8]
// CHECK: %ctx_latent = attn.attend %q_absorbed, %view {scale = 0.25, softcap = 3.0} : f32[B, T, 2, 8]
// CHECK: %ctx = core.grouped_linear %ctx_latent, %uv : f32[B, T, 2, 5]

// -----  other attention stays as it is beside one that is absorbed

graph @mixed (%layers.0.q: f32[B, T, 2, 8], %layers.0.k: f32[B, T, 2, 8], %layers.0.v: f32[B, T, 2, 8], %layers.1.row: f32[B, T, 8], %layers.1.q: f32[B, T, 2, 6]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.25}
  %layers.1.uk = weight.load : f32[12, 8]
  %layers.1.uv = weight.load : f32[10, 8]
  %layers.1.memory = state.rows %layers.1.row
  %layers.1.rows = mem.read %layers.1.memory
  %layers.1.k_b = core.linear %layers.1.rows, %layers.1.uk
  %layers.1.k_rows = core.unflatten %layers.1.k_b {parts = 2}
  %layers.1.v_b = core.linear %layers.1.rows, %layers.1.uv
  %layers.1.v_rows = core.unflatten %layers.1.v_b {parts = 2}
  %layers.1.view = mem.view %layers.1.memory, %layers.1.k_rows, v=%layers.1.v_rows
  %layers.1.ctx = attn.attend %layers.1.q, %layers.1.view {scale = 0.25}
  return %layers.0.ctx, %layers.1.ctx
}
// CHECK: %ctx = core.grouped_linear %ctx_latent, %uv : f32[B, T, 2, 5]
// REFUSED: layer 0: it reads no keys and values that are made of kept rows

// -----  a bias of the keys has no place among the queries' channels

graph @bias (%layers.0.row: f32[B, T, 8], %layers.0.q: f32[B, T, 2, 6]) {
  %layers.0.uk = weight.load : f32[12, 8]
  %layers.0.bias = weight.load : f32[12]
  %layers.0.uv = weight.load : f32[10, 8]
  %layers.0.memory = state.rows %layers.0.row
  %layers.0.rows = mem.read %layers.0.memory
  %layers.0.k_b = core.linear %layers.0.rows, %layers.0.uk, bias=%layers.0.bias
  %layers.0.k_rows = core.unflatten %layers.0.k_b {parts = 2}
  %layers.0.v_b = core.linear %layers.0.rows, %layers.0.uv
  %layers.0.v_rows = core.unflatten %layers.0.v_b {parts = 2}
  %layers.0.view = mem.view %layers.0.memory, %layers.0.k_rows, v=%layers.0.v_rows
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.view {scale = 0.25}
  return %layers.0.ctx
}
// ERROR: error[RG114]: absorb-mla: layer 0: keys and values of %layers.0.view are not linear maps of one part of the rows
// ERROR: = help: no layer has the other form

// -----  heads that share expanded keys
// RUN: absorb-mla

graph @groups (%layers.0.row: f32[B, T, 8], %layers.0.q: f32[B, T, 4, 6]) {
  %layers.0.uk = weight.load : f32[12, 8]
  %layers.0.uv = weight.load : f32[10, 8]
  %layers.0.memory = state.rows %layers.0.row
  %layers.0.rows = mem.read %layers.0.memory
  %layers.0.k_b = core.linear %layers.0.rows, %layers.0.uk
  %layers.0.k_rows = core.unflatten %layers.0.k_b {parts = 2}
  %layers.0.v_b = core.linear %layers.0.rows, %layers.0.uv
  %layers.0.v_rows = core.unflatten %layers.0.v_b {parts = 2}
  %layers.0.view = mem.view %layers.0.memory, %layers.0.k_rows, v=%layers.0.v_rows
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.view {scale = 0.25}
  return %layers.0.ctx
}
// ERROR: error[RG114]: absorb-mla: layer 0: query heads share expanded keys, or are mapped to them

// -----  an expanded attention cannot be expanded
// RUN: expand-mla{layers=0}

graph @already (%layers.0.row: f32[B, T, 8], %layers.0.q: f32[B, T, 2, 6]) {
  %layers.0.uk = weight.load : f32[12, 8]
  %layers.0.uv = weight.load : f32[10, 8]
  %layers.0.memory = state.rows %layers.0.row
  %layers.0.rows = mem.read %layers.0.memory
  %layers.0.k_b = core.linear %layers.0.rows, %layers.0.uk
  %layers.0.k_rows = core.unflatten %layers.0.k_b {parts = 2}
  %layers.0.v_b = core.linear %layers.0.rows, %layers.0.uv
  %layers.0.v_rows = core.unflatten %layers.0.v_b {parts = 2}
  %layers.0.view = mem.view %layers.0.memory, %layers.0.k_rows, v=%layers.0.v_rows
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.view {scale = 0.25}
  return %layers.0.ctx
}
// ERROR: error[RG114]: expand-mla: layer 0: its attention is expanded already
