// fuse-projections: maps of one value as one product, cut into what each of them gave.
// RUN: fuse-projections

graph @attention (%x: f32[B, T, 8]) {
  %model.layers.0.q_proj.weight = weight.load : f32[8, 8]
  %layers.0.attn.q_proj = core.linear %x, %model.layers.0.q_proj.weight
  %layers.0.attn.q = core.unflatten %layers.0.attn.q_proj {parts = 2}
  %model.layers.0.k_proj.weight = weight.load : f32[4, 8]
  %layers.0.attn.k_proj = core.linear %x, %model.layers.0.k_proj.weight
  %layers.0.attn.k = core.unflatten %layers.0.attn.k_proj {parts = 1}
  %layers.0.attn.memory = state.kv %layers.0.attn.k, %layers.0.attn.k
  %layers.0.attn.ctx = attn.attend %layers.0.attn.q, %layers.0.attn.memory {scale = 0.5}
  return %layers.0.attn.ctx
}
// CHECK: %model.layers.*.qk_proj.weight = weight.concat %model.layers.*.q_proj.weight, %model.layers.*.k_proj.weight : f32[12, 8]
// CHECK: %attn.qk_proj = core.linear %x, %model.layers.*.qk_proj.weight : f32[B, T, 12]
// CHECK: %attn.q_proj = core.slice %attn.qk_proj {start = 0, stop = 8} : f32[B, T, 8]
// CHECK: %attn.k_proj = core.slice %attn.qk_proj {start = 8, stop = 12} : f32[B, T, 4]

// -----  rows of one tensor, in order, are that tensor; biases go along

graph @cut (%x: f32[B, T, 8]) {
  %model.layers.0.mlp.gate_up_proj.weight = weight.load : f32[12, 8]
  %gate.weight = weight.slice %model.layers.0.mlp.gate_up_proj.weight {start = 0, stop = 6}
  %gate.bias = weight.load : f32[6]
  %layers.0.mlp.gate = core.linear %x, %gate.weight, bias=%gate.bias
  %layers.0.mlp.act = core.activation %layers.0.mlp.gate {kind = "silu"}
  %up.weight = weight.slice %model.layers.0.mlp.gate_up_proj.weight {start = 6, stop = 12}
  %up.bias = weight.load : f32[6]
  %layers.0.mlp.up = core.linear %x, %up.weight, bias=%up.bias
  %layers.0.mlp.hidden = core.mul %layers.0.mlp.act, %layers.0.mlp.up
  return %layers.0.mlp.hidden
}
// CHECK: %gate_up.bias = weight.concat %gate.bias, %up.bias : f32[12]
// CHECK: %layers.0.mlp.gate_up = core.linear %x, %model.layers.0.mlp.gate_up_proj.weight, bias=%gate_up.bias : f32[B, T, 12]
// CHECK-NOT: weight.slice

// -----  a map that serves another op too stays alone

graph @shared (%x: f32[B, T, 8], %y: f32[B, T, 8]) {
  %a = weight.load : f32[8, 8]
  %layers.0.other = core.linear %y, %a
  %layers.0.gate = core.linear %x, %a
  %b = weight.load : f32[8, 8]
  %layers.0.up = core.linear %x, %b
  %layers.0.hidden = core.mul %layers.0.gate, %layers.0.up
  return %layers.0.hidden, %layers.0.other
}
// ERROR: error[RG114]: fuse-projections: layer 0: %a of core.linear %layers.0.gate serves other ops too, or is known only at run time

// -----  of different values, and with a bias at one of them
// RUN: fuse-projections{maps=mlp}

graph @different (%x: f32[B, T, 8], %y: f32[B, T, 8]) {
  %a = weight.load : f32[8, 8]
  %b = weight.load : f32[8, 8]
  %c = weight.load : f32[8]
  %layers.0.gate = core.linear %x, %a
  %layers.0.up = core.linear %x, %b, bias=%c
  %layers.0.hidden = core.mul %layers.0.gate, %layers.0.up
  return %layers.0.hidden
}
// ERROR: error[RG114]: fuse-projections: layer 0: core.linear %layers.0.gate and core.linear %layers.0.up differ in their element types, or in having a bias
