// fold-norms: a norm's weight goes into the columns of the maps that read it.
// RUN: fold-norms

graph @maps (%layers.0.x: f32[B, T, 8]) {
  %model.layers.0.norm.weight = weight.load : f32[8]
  %layers.0.attn.norm = core.norm %layers.0.x, weight=%model.layers.0.norm.weight {eps = 1e-06, offset = 1.0, cast = "after"}
  %model.layers.0.q.weight = weight.load : f32[16, 8]
  %model.layers.0.q.bias = weight.load : f32[16]
  %layers.0.attn.q = core.linear %layers.0.attn.norm, %model.layers.0.q.weight, bias=%model.layers.0.q.bias
  %model.layers.0.k.weight = weight.load : f32[4, 8]
  %layers.0.attn.k = core.linear %layers.0.attn.norm, %model.layers.0.k.weight
  return %layers.0.attn.q, %layers.0.attn.k
}
// CHECK: %attn.norm = core.norm %x {eps = 1e-06} : f32[B, T, 8]
// CHECK: %model.layers.*.q.weight.original = weight.load {tensor = "model.layers.*.q.weight"} : f32[16, 8]
// CHECK: %model.layers.*.q.weight = weight.scale %model.layers.*.q.weight.original, %model.layers.*.norm.weight {axis = 1, offset = 1.0} : f32[16, 8]
// CHECK: %attn.q = core.linear %attn.norm, %model.layers.*.q.weight, bias=%model.layers.*.q.bias : f32[B, T, 16]
// CHECK: %model.layers.*.k.weight = weight.scale %model.layers.*.k.weight.original, %model.layers.*.norm.weight {axis = 1, offset = 1.0} : f32[4, 8]

// -----  experts have the channels on their last axis; with ones the norm's tensor stays
// RUN: fold-norms{leave=ones}

graph @experts (%layers.0.x: f32[B, T, 8]) {
  %norm.weight = weight.load : f32[8]
  %layers.0.norm = core.norm %layers.0.x, weight=%norm.weight {eps = 1e-06}
  %router = weight.load : f32[3, 8]
  %layers.0.logits = core.linear %layers.0.norm, %router
  %layers.0.w, %layers.0.e = moe.route %layers.0.logits {chosen = 2}
  %gate_up = weight.load : f32[3, 12, 8]
  %down = weight.load : f32[3, 8, 6]
  %layers.0.y = moe.experts %layers.0.norm, %layers.0.w, %layers.0.e, %gate_up, %down
  return %layers.0.y
}
// CHECK: %norm.weight = weight.fill {value = 1.0} : f32[8]
// CHECK: %router = weight.scale %router.original, %norm.weight.original {axis = 1} : f32[3, 8]
// CHECK: %gate_up = weight.scale %gate_up.original, %norm.weight.original {axis = 2} : f32[3, 12, 8]

// -----  a rotation, a residual sum, a shared matrix: each keeps the weight where it is

graph @kept (%layers.0.x: f32[B, T, 8], %layers.0.k: f32[B, T, 2, 4], %pos: i64[B, T], %tokens: i64[B, T]) {
  %a = weight.load : f32[8]
  %layers.0.first = core.norm %layers.0.x, weight=%a {eps = 1e-06}
  %b = weight.load : f32[8, 8]
  %layers.0.y = core.linear %layers.0.first, %b
  %layers.0.post = core.norm %layers.0.y, weight=%a {eps = 1e-06}
  %layers.0.out = core.add %layers.0.x, %layers.0.post
  %c = weight.load : f32[4]
  %layers.0.k_norm = core.norm %layers.0.k, weight=%c {eps = 1e-06}
  %layers.0.k_rope = pos.rope %layers.0.k_norm, %pos {base = 100.0, channels = 4}
  %table = weight.load : f32[20, 8]
  %rows = core.embed %tokens, %table
  %last = core.norm %rows, weight=%a {eps = 1e-06}
  %logits = core.linear %last, %table
  return %layers.0.out, %layers.0.k_rope, %logits
}
// CHECK: %b = weight.scale %b.original, %a {axis = 1} : f32[8, 8]
// CHECK: %last = core.norm %rows, weight=%a {eps = 1e-06} : f32[B, T, 8]
// REFUSED: layer 0: core.add %layers.0.out reads core.norm %layers.0.post, and is no map whose weight could take its weight over
// REFUSED: layer 0: pos.rope %layers.0.k_rope reads core.norm %layers.0.k_norm, and is no map whose weight could take its weight over
// REFUSED: core.norm %last: %table of core.linear %logits serves core.embed %rows too, so it stays as it is

// -----  what is fitted to the norm as it is

graph @fitted (%layers.0.x: f32[B, T, 8]) {
  %a = weight.load : f32[8]
  %layers.0.norm = core.norm %layers.0.x, weight=%a {eps = 1e-06}
  %moment = weight.moment a=%layers.0.norm, b=%layers.0.norm : f64[8, 8]
  %b = weight.load : f32[8, 8]
  %layers.0.y = core.linear %layers.0.norm, %b
  return %layers.0.y, %moment
}
// ERROR: error[RG114]: fold-norms: layer 0: weight.moment %moment fits to what core.norm %layers.0.norm gives as it is

// -----  nothing to fold

graph @nothing (%layers.0.q: f32[B, T, 2, 4], %layers.0.k: f32[B, T, 2, 4]) {
  %layers.0.memory = state.kv %layers.0.k, %layers.0.k
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  return %layers.0.ctx
}
// ERROR: error[RG114]: fold-norms: layer 0: it has no norm with a weight
// ERROR: = help: no norm is read by maps of its own alone
