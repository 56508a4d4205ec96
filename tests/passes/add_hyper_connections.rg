// add-hyper-connections: blocks read one input from all streams and write to all of them.
// RUN: add-hyper-connections{streams=3, iterations=5}

graph @plain (%tokens: i64[B, T]) {
  %table = weight.load : f32[20, 8]
  %embed = core.embed %tokens, %table
  %model.layers.0.up = weight.load : f32[8, 8]
  %layers.0.mlp.norm = core.norm %embed {eps = 1e-05}
  %layers.0.mlp.up = core.linear %layers.0.mlp.norm, %model.layers.0.up
  %layers.0.out = core.add %embed, %layers.0.mlp.up
  %norm = core.norm %layers.0.out {eps = 1e-05}
  %logits = core.linear %norm, %table
  return %logits
}
// CHECK: %model.layers.*.mlp_hc.fn = weight.fill : f32[15, 24]
// CHECK: %model.layers.*.mlp_hc.base.stays = weight.combine %model.layers.*.mlp_hc.base.one {factors = [2.890371757896165]} : f32[3, 3]
// CHECK: %mlp.input, %mlp.post, %mlp.comb = hyper.read %streams, %model.layers.*.mlp_hc.fn, %model.layers.*.mlp_hc.base, %model.layers.*.mlp_hc.scale {eps = 1e-05, floor = 0.0, iterations = 5} : f32[B, T, 8], f32[B, T, 3], f32[B, T, 3, 3]
// CHECK: %mlp.norm = core.norm %mlp.input {eps = 1e-05} : f32[B, T, 8]
// CHECK: %out = hyper.write %streams, %mlp.up, %mlp.post, %mlp.comb : f32[B, T, 3, 8]
// CHECK: %streams = core.repeat %embed {parts = 3} : f32[B, T, 3, 8]
// CHECK: %collapsed = hyper.collapse %layers.0.out, %model.hc_head.fn, %model.hc_head.base, %model.hc_head.scale {eps = 1e-05, floor = 0.0} : f32[B, T, 8]
// CHECK: %norm = core.norm %collapsed {eps = 1e-05} : f32[B, T, 8]

// -----  what scales the stream scales all of them

graph @scaled (%tokens: i64[B, T]) {
  %table = weight.load : f32[20, 8]
  %rows = core.embed %tokens, %table
  %embed = core.scale %rows {factor = 2.0}
  %up = weight.load : f32[8, 8]
  %layers.0.mlp.up = core.linear %embed, %up
  %layers.0.residual = core.add %embed, %layers.0.mlp.up
  %by = weight.load : f32[8]
  %layers.0.out = core.gain %layers.0.residual, %by
  %logits = core.linear %layers.0.out, %table
  return %logits
}
// CHECK: %streams = core.repeat %embed {parts = 3} : f32[B, T, 3, 8]
// CHECK: %layers.0.out = core.gain %layers.0.residual, %by : f32[B, T, 3, 8]
// CHECK: %logits = core.linear %collapsed, %table : f32[B, T, 20]

// -----  a sum of two values that have nothing to do with each other is no stream

graph @no_stream (%tokens: i64[B, T]) {
  %table = weight.load : f32[20, 8]
  %a = core.embed %tokens, %table
  %b = core.embed %tokens, %table
  %layers.0.out = core.add %a, %b
  %logits = core.linear %layers.0.out, %table
  return %logits
}
// ERROR: error[RG114]: add-hyper-connections: layer 0: core.add %layers.0.out adds two values of which neither is made from the other
