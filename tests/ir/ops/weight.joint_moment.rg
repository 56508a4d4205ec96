graph @valid (%x: f32[B, T, 12], %h: f32[B, T, 32]) {
  %w = weight.load : bf16[64, 32]
  %c = weight.joint_moment %w, x=%h {parts = 4} : f64[64, 64]
  %v = weight.load : bf16[16, 12]
  %b = weight.load : bf16[16]
  %n = weight.load : bf16[4]
  %e = weight.joint_moment %v, x=%x {parts = 4} : f64[16, 16]
  %d = weight.joint_moment %v, bias=%b, norm=%n {parts = 4, source = "layers.0.norm", eps = 1e-06, offset = 1.0} : f64[16, 16]
  return %c, %d, %e
}

// -----

graph @nothing_to_project () {
  %w = weight.load : bf16[16, 12]
  %c = weight.joint_moment %w {parts = 4}
  return %c
}
// ERROR: error[RG034]: weight.joint_moment: what the projection reads is given twice or not at all

// -----

graph @over_weights () {
  %w = weight.load : bf16[16, 12]
  %x = weight.load : bf16[3, 4, 12]
  %c = weight.joint_moment %w, x=%x {parts = 4}
  return %c
}
// ERROR: error[RG010]: weight.joint_moment: operand x is bf16[3, 4, 12], expected float[B, T, I]

// -----

graph @uneven_heads (%x: f32[B, T, 12]) {
  %w = weight.load : bf16[16, 12]
  %c = weight.joint_moment %w, x=%x {parts = 3}
  return %c
}
// ERROR: error[RG034]: weight.joint_moment: 16 rows for 3 heads

// -----

graph @a_norm_without_eps (%x: f32[B, T, 12]) {
  %w = weight.load : bf16[16, 12]
  %n = weight.load : bf16[4]
  %c = weight.joint_moment %w, x=%x, norm=%n {parts = 4}
  return %c
}
// ERROR: error[RG034]: weight.joint_moment: a norm of 4 channels, eps None
