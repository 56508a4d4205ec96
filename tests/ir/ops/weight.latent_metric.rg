graph @valid () {
  %q = weight.load : f64[4, 16, 16]
  %o = weight.load : bf16[64, 64]
  %g = weight.load : f64[2, 2]
  %m = weight.latent_metric %q, %o {groups = [0, 0, 1, 1], scale = 0.25, kv_heads = 2} : f64[64, 64]
  %n = weight.latent_metric %q, %o, key_gains=%g, value_gains=%g {groups = [0, 1, 0, 1], scale = 1.0, kv_heads = 2, channels = 8, layout = "interleaved"} : f64[64, 64]
  %s = weight.load : f64[4, 17, 17]
  %p = weight.latent_metric %q, %o, spread=%s {groups = [0, 0, 1, 1], scale = 0.25, kv_heads = 2} : f64[64, 64]
  return %m, %n, %p
}

// -----

graph @heads_are_missing () {
  %q = weight.load : f64[4, 16, 16]
  %o = weight.load : bf16[64, 64]
  %m = weight.latent_metric %q, %o {groups = [0, 0, 1], scale = 0.25, kv_heads = 2}
  return %m
}
// ERROR: error[RG034]: weight.latent_metric: groups [0, 0, 1] of 4 heads, 2 KV heads

// -----

graph @an_output_of_other_heads () {
  %q = weight.load : f64[4, 16, 16]
  %o = weight.load : bf16[64, 62]
  %m = weight.latent_metric %q, %o {groups = [0, 0, 1, 1], scale = 0.25, kv_heads = 2}
  return %m
}
// ERROR: error[RG034]: weight.latent_metric: an output of 62 channels for 4 heads

// -----

graph @gains_of_other_heads () {
  %q = weight.load : f64[4, 16, 16]
  %o = weight.load : bf16[64, 64]
  %g = weight.load : f64[4, 4]
  %m = weight.latent_metric %q, %o, key_gains=%g {groups = [0, 0, 1, 1], scale = 0.25, kv_heads = 2}
  return %m
}
// ERROR: error[RG034]: weight.latent_metric: gains of 4 heads

// -----

graph @more_channels_than_a_key_has () {
  %q = weight.load : f64[4, 16, 16]
  %o = weight.load : bf16[64, 64]
  %m = weight.latent_metric %q, %o {groups = [0, 0, 1, 1], scale = 0.25, kv_heads = 2, channels = 18}
  return %m
}
// ERROR: error[RG034]: weight.latent_metric: 18 channels of 16 turn

// -----

graph @a_spread_of_other_values () {
  %q = weight.load : f64[4, 16, 16]
  %o = weight.load : bf16[64, 64]
  %s = weight.load : f64[4, 16, 16]
  %m = weight.latent_metric %q, %o, spread=%s {groups = [0, 0, 1, 1], scale = 0.25, kv_heads = 2}
  return %m
}
// ERROR: error[RG034]: weight.latent_metric: a spread of 16 channels
