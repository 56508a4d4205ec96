graph @valid () {
  %w = weight.load : bf16[64, 128]
  %c = weight.load : f64[128, 128]
  %m = weight.load : f64[64, 64]
  %a = weight.latent %w, gram=%c, metric=%m {rank = 8, keys = 32, balance = 1.0} : f64[8, 128]
  %b = weight.latent %w {rank = 64, keys = 32} : f64[64, 128]
  return %a, %b
}

// -----

graph @above_the_full_rank () {
  %w = weight.load : bf16[64, 48]
  %a = weight.latent %w {rank = 49, keys = 32}
  return %a
}
// ERROR: error[RG034]: weight.latent: rank 49

// -----

graph @nothing_but_keys () {
  %w = weight.load : bf16[64, 48]
  %a = weight.latent %w {rank = 4, keys = 65}
  return %a
}
// ERROR: error[RG034]: weight.latent: 65 keys of 64 targets, balance None
