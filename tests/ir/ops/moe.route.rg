graph @valid (%logits: bf16[B, T, 64]) {
  %bias = weight.load : f32[64]
  %gain = weight.load : bf16[64]
  %w, %e = moe.route %logits {chosen = 8, normalize = true} : bf16[B, T, 8], i64[B, T, 8]
  %u, %d = moe.route %logits, bias=%bias, gain=%gain {chosen = 8, score = "sigmoid", scale = 2.5} : bf16[B, T, 8], i64[B, T, 8]
  %g, %h = moe.route %logits, bias=%bias {chosen = 8, normalize = true, score = "sigmoid", eps = 1e-20, groups = 8, kept = 4, best = 2} : bf16[B, T, 8], i64[B, T, 8]
  return %w, %e, %u, %d, %g, %h
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

// -----

graph @uneven_groups (%logits: bf16[B, T, 64]) {
  %w, %e = moe.route %logits {chosen = 8, groups = 6}
  return %w, %e
}
// ERROR: error[RG034]: moe.route: 64 experts in 6 groups

// -----

graph @more_groups_than_there_are (%logits: bf16[B, T, 64]) {
  %w, %e = moe.route %logits {chosen = 8, groups = 4, kept = 5}
  return %w, %e
}
// ERROR: error[RG034]: moe.route: 5 groups kept of 4

// -----

graph @groups_are_smaller (%logits: bf16[B, T, 64]) {
  %w, %e = moe.route %logits {chosen = 8, groups = 64, kept = 8, best = 2}
  return %w, %e
}
// ERROR: error[RG034]: moe.route: the 2 best of 1 experts

// -----

graph @too_few_experts_stay (%logits: bf16[B, T, 64]) {
  %w, %e = moe.route %logits {chosen = 8, groups = 16, kept = 1}
  return %w, %e
}
// ERROR: error[RG034]: moe.route: 8 experts chosen of 1 groups that hold fewer
