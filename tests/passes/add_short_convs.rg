// add-short-convs: a kernel of one 1 before each projection's heads are told apart.
// RUN: add-short-convs{of=q, taps=3}

graph @plain (%x: f32[B, T, 8], %layers.0.k: f32[B, T, 1, 4]) {
  %model.layers.0.self_attn.q_proj.weight = weight.load : f32[8, 8]
  %layers.0.q_proj = core.linear %x, %model.layers.0.self_attn.q_proj.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  return %layers.0.ctx
}
// CHECK: %model.layers.*.self_attn.q_conv.before = weight.fill : f32[8, 1, 2]
// CHECK: %model.layers.*.self_attn.q_conv.itself = weight.fill {value = 1.0} : f32[8, 1, 1]
// CHECK: %model.layers.*.self_attn.q_conv.weight = weight.concat %model.layers.*.self_attn.q_conv.before, %model.layers.*.self_attn.q_conv.itself {axis = 2} : f32[8, 1, 3]
// CHECK: %q_tail = state.tail %q_proj {rows = 2} : memory<f32; x [8]; fixed 2>
// CHECK: %q_conv = seq.conv %q_tail, %model.layers.*.self_attn.q_conv.weight {groups = 8} : f32[B, T, 8]
// CHECK: %q = core.unflatten %q_conv {parts = 2} : f32[B, T, 2, 4]

// -----  values that no projection makes
// RUN: add-short-convs{of=v}

graph @no_projection (%layers.0.q: f32[B, T, 2, 4], %layers.0.k: f32[B, T, 1, 4]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  return %layers.0.ctx
}
// ERROR: error[RG114]: add-short-convs: layer 0: %layers.0.k is an input of the graph
