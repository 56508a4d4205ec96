graph @valid (%x: bf16[B, T, 64]) {
  %w = weight.load : bf16[64]
  %b = weight.load : bf16[64]
  %h = core.layer_norm %x, %w, %b {eps = 1e-06} : bf16[B, T, 64]
  return %h
}

// -----

graph @no_eps (%x: bf16[B, T, 64]) {
  %w = weight.load : bf16[64]
  %h = core.layer_norm %x, %w, %w {eps = 0.0}
  return %h
}
// ERROR: error[RG034]: core.layer_norm: eps is 0.0
