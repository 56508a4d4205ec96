// drop-dead: what is listed goes; without weights nothing else can be decided.
// RUN: drop-dead{heads={0: [0, 1]}, experts={}}

graph @heads (%x: f32[B, T, 8]) {
  %q.weight = weight.load : f32[16, 8]
  %layers.0.q_proj = core.linear %x, %q.weight
  %layers.0.q = core.unflatten %layers.0.q_proj {parts = 4}
  %k.weight = weight.load : f32[8, 8]
  %layers.0.k_proj = core.linear %x, %k.weight
  %layers.0.k = core.unflatten %layers.0.k_proj {parts = 2}
  %v.weight = weight.load : f32[8, 8]
  %layers.0.v_proj = core.linear %x, %v.weight
  %layers.0.v = core.unflatten %layers.0.v_proj {parts = 2}
  %layers.0.memory = state.kv %layers.0.k, %layers.0.v
  %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5}
  %layers.0.merged = core.flatten %layers.0.ctx
  %o.weight = weight.load : f32[8, 16]
  %layers.0.out = core.linear %layers.0.merged, %o.weight
  return %layers.0.out
}
// CHECK: %q.weight = weight.take %q.weight.original {block = 4, indices = [2, 3]} : f32[8, 8]
// CHECK: %k.weight = weight.take %k.weight.original {block = 4, indices = [1]} : f32[4, 8]
// CHECK: %layers.0.memory = state.kv %layers.0.k, %layers.0.v : memory<f32; k [1, 4], v [1, 4]>
// CHECK: %layers.0.ctx = attn.attend %layers.0.q, %layers.0.memory {scale = 0.5} : f32[B, T, 2, 4]

// -----  the router weighs experts without weights last
// RUN: drop-dead{heads={}, experts={0: [1]}}

graph @experts (%x: f32[B, T, 8]) {
  %router = weight.load : f32[3, 8]
  %layers.0.logits = core.linear %x, %router
  %bias = weight.load : f32[3]
  %layers.0.w, %layers.0.e = moe.route %layers.0.logits, bias=%bias {chosen = 2}
  %gate_up = weight.load : f32[3, 12, 8]
  %down = weight.load : f32[3, 8, 6]
  %layers.0.y = moe.experts %x, %layers.0.w, %layers.0.e, %gate_up, %down
  return %layers.0.y
}
// CHECK: %router = weight.take %router.original {block = 1, indices = [0, 2, 1]} : f32[3, 8]
// CHECK: %bias = weight.take %bias.original {block = 1, indices = [0, 2, 1]} : f32[3]
// CHECK: %gate_up = weight.take %gate_up.original {block = 1, indices = [0, 2]} : f32[2, 12, 8]
// CHECK: %down = weight.take %down.original {block = 1, indices = [0, 2]} : f32[2, 8, 6]
// CHECK: %layers.0.y = moe.experts %x, %layers.0.w, %layers.0.e, %gate_up, %down {skip = "zero"} : f32[B, T, 8]

// -----  experts that a table names by number stay
// RUN: drop-dead{heads={}, experts={0: [1]}}

graph @hashed (%x: f32[B, T, 8], %tokens: i64[B, T]) {
  %table = weight.load : i64[20, 2]
  %layers.0.given = moe.assign %tokens, %table
  %router = weight.load : f32[3, 8]
  %layers.0.logits = core.linear %x, %router
  %layers.0.w, %layers.0.e = moe.route %layers.0.logits, given=%layers.0.given {chosen = 2}
  %gate_up = weight.load : f32[3, 12, 8]
  %down = weight.load : f32[3, 8, 6]
  %layers.0.y = moe.experts %x, %layers.0.w, %layers.0.e, %gate_up, %down
  return %layers.0.y
}
// ERROR: error[RG114]: drop-dead: layer 0: a table of token ids chooses its experts by number
