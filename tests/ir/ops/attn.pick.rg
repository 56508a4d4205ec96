graph @valid (%k: bf16[B, T, 4, 128]) {
  %near = attn.pick %k {heads = [0, 2]} : bf16[B, T, 2, 128]
  %turned = attn.pick %near {heads = [1, 0]} : bf16[B, T, 2, 128]
  return %turned
}

// -----

graph @beyond_the_heads (%k: bf16[B, T, 4, 128]) {
  %near = attn.pick %k {heads = [0, 4]}
  return %near
}
// ERROR: error[RG034]: attn.pick: heads [0, 4] of 4
