graph @valid (%logits: bf16[B, T, 64]) {
  %bias = weight.load : f32[64]
  %gain = weight.load : bf16[64]
  %w, %e = moe.route %logits {chosen = 8, normalize = true} : bf16[B, T, 8], i64[B, T, 8]
  %u, %d = moe.route %logits, bias=%bias, gain=%gain {chosen = 8, score = "sigmoid", scale = 2.5} : bf16[B, T, 8], i64[B, T, 8]
  return %w, %e, %u, %d
}

// -----

graph @too_many (%logits: bf16[B, T, 4]) {
  %w, %e = moe.route %logits {chosen = 8}
  return %w, %e
}
// ERROR: error[RG034]: moe.route: 8 experts chosen of 4

// -----

graph @one_result (%logits: bf16[B, T, 4]) {
  %w = moe.route %logits {chosen = 2}
  return %w
}
// ERROR: error[RG001]: expected 2 results of moe.route, found 1
