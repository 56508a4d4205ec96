// add-per-layer-embeddings: a table for all layers, and after each a norm that starts at zero.
// RUN: add-per-layer-embeddings{width=4, seed=5}

graph @plain (%tokens: i64[B, T]) {
  %model.embed_tokens.weight = weight.load : f32[20, 16]
  %embed = core.embed %tokens, %model.embed_tokens.weight
  %model.layers.0.up = weight.load : f32[16, 16]
  %layers.0.mlp.up = core.linear %embed, %model.layers.0.up
  %layers.0.mlp.act = core.activation %layers.0.mlp.up {kind = "gelu_tanh"}
  %layers.0.out = core.add %embed, %layers.0.mlp.act
  %logits = core.linear %layers.0.out, %model.embed_tokens.weight
  return %logits
}
// CHECK: %model.layers.*.per_layer_input_gate.weight = weight.random {std = 0.25, seed = 7} : f32[4, 16]
// CHECK: %ple.act = core.activation %ple.gate {kind = "gelu_tanh"} : f32[B, T, 4]
// CHECK: %ple.hidden = core.mul %ple.act, %ple.of_0 : f32[B, T, 4]
// CHECK: %model.layers.*.post_per_layer_input_norm.weight = weight.fill : f32[16]
// CHECK: %ple.norm = core.norm %ple.projected, weight=%model.layers.*.post_per_layer_input_norm.weight {eps = 1e-06} : f32[B, T, 16]
// CHECK: %ple.residual = core.add %out, %ple.norm : f32[B, T, 16]
// CHECK: %model.embed_tokens_per_layer.weight = weight.random {std = 0.5, seed = 5} : f32[20, 4]
// CHECK: %ple.rows = core.embed %tokens, %model.embed_tokens_per_layer.weight : f32[B, T, 4]
// CHECK: %model.per_layer_model_projection.weight = weight.random {std = 1.0, seed = 6} : f32[4, 16]
// CHECK: %ple.context = core.scale %ple.projected {factor = 0.25} : f32[B, T, 4]
// CHECK: %ple.of_0 = core.slice %ple.all {start = 0, stop = 4} : f32[B, T, 4]
// CHECK: %logits = core.linear %layers.0.ple.residual, %model.embed_tokens.weight : f32[B, T, 20]

// -----  no tokens to look up

graph @no_tokens (%x: f32[B, T, 8]) {
  %up = weight.load : f32[8, 8]
  %layers.0.up = core.linear %x, %up
  %layers.0.out = core.add %x, %layers.0.up
  return %layers.0.out
}
// ERROR: error[RG114]: add-per-layer-embeddings: layer 0: no tokens are looked up in a table
