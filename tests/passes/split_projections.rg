// split-projections: a map whose result is taken in parts, as a map for each part.
// RUN: split-projections

graph @flat (%x: f32[B, T, 8]) {
  %model.layers.0.mlp.gate_up_proj.weight = weight.load : f32[12, 8]
  %model.layers.0.mlp.gate_up_proj.bias = weight.load : f32[12]
  %layers.0.mlp.gate_up = core.linear %x, %model.layers.0.mlp.gate_up_proj.weight, bias=%model.layers.0.mlp.gate_up_proj.bias
  %layers.0.mlp.gate = core.slice %layers.0.mlp.gate_up {start = 0, stop = 4}
  %layers.0.mlp.up = core.slice %layers.0.mlp.gate_up {start = 6, stop = 10}
  %layers.0.mlp.hidden = core.mul %layers.0.mlp.gate, %layers.0.mlp.up
  return %layers.0.mlp.hidden
}
// CHECK: %model.layers.*.mlp.gate_up_proj.weight.original = weight.load {tensor = "model.layers.*.mlp.gate_up_proj.weight"} : f32[12, 8]
// CHECK: %model.layers.*.mlp.gate_proj.weight = weight.slice %model.layers.*.mlp.gate_up_proj.weight.original {start = 0, stop = 4} : f32[4, 8]
// CHECK: %model.layers.*.mlp.gate_proj.bias = weight.slice %model.layers.*.mlp.gate_up_proj.bias.original {start = 0, stop = 4} : f32[4]
// CHECK: %mlp.gate_proj = core.linear %x, %model.layers.*.mlp.gate_proj.weight, bias=%model.layers.*.mlp.gate_proj.bias : f32[B, T, 4]
// CHECK: %model.layers.*.mlp.up_proj.weight = weight.slice %model.layers.*.mlp.gate_up_proj.weight.original {start = 6, stop = 10} : f32[4, 8]
// CHECK: %mlp.hidden = core.mul %mlp.gate_proj, %mlp.up_proj : f32[B, T, 4]
// CHECK-NOT: core.slice

// -----  parts of each head

graph @heads (%x: f32[B, T, 8]) {
  %model.layers.0.q_proj.weight = weight.load : f32[12, 8]
  %layers.0.attn.q_proj = core.linear %x, %model.layers.0.q_proj.weight
  %layers.0.attn.both = core.unflatten %layers.0.attn.q_proj {parts = 2}
  %layers.0.attn.gate = core.slice %layers.0.attn.both {start = 4, stop = 6}
  %layers.0.attn.q = core.slice %layers.0.attn.both {start = 0, stop = 4}
  return %layers.0.attn.q, %layers.0.attn.gate
}
// CHECK: %model.layers.*.q_proj.weight.heads = weight.reshape %model.layers.*.q_proj.weight.original {shape = [2, 6, 8]} : f32[2, 6, 8]
// CHECK: %model.layers.*.q_proj.weight.rows = weight.slice %model.layers.*.q_proj.weight.heads {axis = 1, start = 0, stop = 4} : f32[2, 4, 8]
// CHECK: %model.layers.*.q_proj.weight = weight.reshape %model.layers.*.q_proj.weight.rows {shape = [8, 8]} : f32[8, 8]
// CHECK: %attn.q_proj = core.linear %x, %model.layers.*.q_proj.weight : f32[B, T, 8]
// CHECK: %attn.q = core.unflatten %attn.q_proj {parts = 2} : f32[B, T, 2, 4]
// CHECK: %attn.gate = core.unflatten %attn.gate_proj {parts = 2} : f32[B, T, 2, 2]

// -----  what is taken whole too stays

graph @whole (%x: f32[B, T, 8]) {
  %a = weight.load : f32[12, 8]
  %layers.0.both = core.linear %x, %a
  %layers.0.one = core.slice %layers.0.both {start = 0, stop = 6}
  %layers.0.other = core.slice %layers.0.both {start = 6, stop = 12}
  return %layers.0.one, %layers.0.other, %layers.0.both
}
// ERROR: error[RG114]: split-projections: layer 0: %layers.0.both is taken whole
// ERROR: = help: no layer has maps to split

// -----  parts that overlap

graph @overlap (%x: f32[B, T, 8]) {
  %a = weight.load : f32[12, 8]
  %layers.0.both = core.linear %x, %a
  %layers.0.one = core.slice %layers.0.both {start = 0, stop = 7}
  %layers.0.other = core.slice %layers.0.both {start = 6, stop = 12}
  return %layers.0.one, %layers.0.other
}
// ERROR: error[RG114]: split-projections: layer 0: parts of %layers.0.both overlap

// -----  a weight that another map reads

graph @tied (%x: f32[B, T, 8]) {
  %a = weight.load : f32[12, 8]
  %layers.0.both = core.linear %x, %a
  %layers.0.one = core.slice %layers.0.both {start = 0, stop = 6}
  %layers.0.other = core.slice %layers.0.both {start = 6, stop = 12}
  %layers.0.third = core.linear %x, %a
  return %layers.0.one, %layers.0.other, %layers.0.third
}
// ERROR: error[RG114]: split-projections: layer 0: %a serves other ops too, or is known only at run time
