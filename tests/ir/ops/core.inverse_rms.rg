graph @valid (%k: bf16[B, T, 4, 16], %h: f32[B, S@m, 2, 8]) {
  %s = core.inverse_rms %k {eps = 1e-06} : bf16[B, T, 4]
  %r = core.inverse_rms %h {eps = 1e-05} : f32[B, S@m, 2]
  return %s, %r
}

// -----

graph @no_eps (%k: bf16[B, T, 4, 16]) {
  %s = core.inverse_rms %k {eps = 0.0}
  return %s
}
// ERROR: error[RG034]: core.inverse_rms: eps is 0.0
