graph @valid (%x: f32[B, T, 12], %h: f32[B, T, 32]) {
  %w = weight.load : bf16[64, 32]
  %s = weight.inverse_power %w, x=%h {parts = 4, eps = 1e-06} : f64[4]
  %v = weight.load : bf16[16, 12]
  %b = weight.load : bf16[16]
  %t = weight.inverse_power %v, bias=%b {parts = 2, source = "layers.0.norm", eps = 1e-06} : f64[2]
  return %s, %t
}

// -----

graph @without_eps (%h: f32[B, T, 32]) {
  %w = weight.load : bf16[64, 32]
  %s = weight.inverse_power %w, x=%h {parts = 4}
  return %s
}
// ERROR: error[RG034]: weight.inverse_power: eps None
