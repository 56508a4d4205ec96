graph @valid (%q: bf16[B, T, 2, 8]) {
  %c = weight.attention_spread %q {source = "m", groups = [0, 1], kv_heads = 2, width = 7} : f64[2, 8, 8]
  %d = weight.attention_spread %q {source = "m", groups = [0, 0], kv_heads = 1, width = 3, scale = 0.5, window = 4, first = 1, softcap = 30.0} : f64[2, 4, 4]
  return %c, %d
}

// -----

graph @other_heads (%q: bf16[B, T, 4, 16]) {
  %c = weight.attention_spread %q {source = "m", groups = [0, 1], kv_heads = 2, width = 16, scale = 0.25}
  return %c
}
// ERROR: error[RG034]: weight.attention_spread: bf16[B, T, 4, 16] for 2 heads

// -----

graph @a_head_too_many (%q: bf16[B, T, 2, 16]) {
  %c = weight.attention_spread %q {source = "m", groups = [0, 2], kv_heads = 2, width = 16, scale = 0.25}
  return %c
}
// ERROR: error[RG034]: weight.attention_spread: groups [0, 2] of 2 KV heads

// -----

graph @no_values (%q: bf16[B, T, 2, 16]) {
  %c = weight.attention_spread %q {source = "m", groups = [0, 1], kv_heads = 2, width = 0}
  return %c
}
// ERROR: error[RG034]: weight.attention_spread: values of 0 channels
