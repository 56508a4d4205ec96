graph @valid (%x: bf16[B, T, 64]) {
  %w = weight.load : bf16[64]
  %h = core.norm %x, weight=%w {eps = 1e-06} : bf16[B, T, 64]
  %g = core.norm %h, weight=%w {eps = 1e-06, offset = 1.0, cast = "after"} : bf16[B, T, 64]
  %n = core.norm %g {eps = 0.5} : bf16[B, T, 64]
  return %n
}

// -----

graph @eps_is_zero (%x: bf16[B, T, 64]) {
  %h = core.norm %x {eps = 0}
  return %h
}
// ERROR: error[RG034]: core.norm: eps is 0.0

// -----

graph @unknown_cast (%x: bf16[B, T, 64]) {
  %h = core.norm %x {eps = 1e-06, cast = "never"}
  return %h
}
// ERROR: error[RG006]: core.norm: attribute cast: 'never' is not a choice

// -----

graph @along_the_sequence (%x: bf16[B, T]) {
  %h = core.norm %x {eps = 1e-06}
  return %h
}
// ERROR: error[RG010]: core.norm: operand x is bf16[B, T], expected float[..., M]

// -----

graph @a_weight_and_clamp (%x: bf16[B, T, 64], %w: bf16[64]) {
  %y = core.norm %x, weight=%w {eps = 1e-06, clamp = true}
  return %y
}
// ERROR: error[RG034]: core.norm: a weight and clamp
