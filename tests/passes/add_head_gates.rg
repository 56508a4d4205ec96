// add-head-gates: gates at zero, and what they cost made up for in the output projection.
// RUN: add-head-gates

graph @plain (%x: f32[B, T, 8], %layers.0.k: f32[B, T, 1, 4]) {
  %model.layers.0.self_attn.q_proj.weight = weight.load : f32[8, 8]
  %layers.0.q_proj = core.linear %x, %model.layers.0.self_attn.q_proj.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  %layers.0.merged = core.flatten %layers.0.ctx
  %model.layers.0.self_attn.o_proj.weight = weight.load : f32[8, 8]
  %layers.0.out = core.linear %layers.0.merged, %model.layers.0.self_attn.o_proj.weight
  return %layers.0.out
}
// CHECK: %model.layers.*.self_attn.g_proj.weight = weight.fill : f32[2, 8]
// CHECK: %gate_logits = core.linear %x, %model.layers.*.self_attn.g_proj.weight : f32[B, T, 2]
// CHECK: %gate = core.activation %gate_logits {kind = "softplus"} : f32[B, T, 2]
// CHECK: %gate_heads = core.unflatten %gate {parts = 2} : f32[B, T, 2, 1]
// CHECK: %gated = core.gain %ctx, %gate_heads : f32[B, T, 2, 4]
// CHECK: %merged = core.flatten %gated : f32[B, T, 8]
// CHECK: %model.layers.*.self_attn.o_proj.weight = weight.combine %model.layers.*.self_attn.o_proj.weight.original {factors = [1.4426950408889634]} : f32[8, 8]

// -----  a norm after the attention would undo the constant

graph @normed (%x: f32[B, T, 8], %layers.0.k: f32[B, T, 1, 4]) {
  %a = weight.load : f32[8, 8]
  %layers.0.q_proj = core.linear %x, %a
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  %layers.0.normed = core.norm %layers.0.ctx {eps = 1e-06}
  %layers.0.merged = core.flatten %layers.0.normed
  %b = weight.load : f32[8, 8]
  %layers.0.out = core.linear %layers.0.merged, %b
  return %layers.0.out
}
// ERROR: error[RG114]: add-head-gates: layer 0: core.norm %layers.0.normed stands between the attention and its output projection, and is not linear
