graph @valid (%q: bf16[B, T, 2, 8]) {
  %p = weight.attention_phases %q {source = "m", groups = [0, 1], kv_heads = 2, angles = [1.0]} : f64[2, 1, 2]
  %r = weight.attention_phases %q {source = "m", groups = [0, 0], kv_heads = 1, angles = [1.0, 0.1], scale = 0.5, window = 4, first = 1, softcap = 30.0} : f64[2, 2, 2]
  return %p, %r
}

// -----

graph @no_angles (%q: bf16[B, T, 2, 8]) {
  %p = weight.attention_phases %q {source = "m", groups = [0, 1], kv_heads = 2, angles = []}
  return %p
}
// ERROR: error[RG034]: weight.attention_phases: no angles
