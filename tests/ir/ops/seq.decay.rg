graph @valid (%a: bf16[B, T, 32], %a_log, %dt_bias: f32[32]) {
  %g = seq.decay %a, %a_log, %dt_bias : f32[B, T, 32]
  return %g
}

// -----

graph @heads_differ (%a: bf16[B, T, 4], %a_log: f32[2], %dt: f32[4]) {
  %g = seq.decay %a, %a_log, %dt
  return %g
}
// ERROR: error[RG010]: seq.decay: operand a_log is f32[2], expected float[H]
