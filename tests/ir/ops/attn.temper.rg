graph @valid (%k: bf16[B, T, 2, 128], %temp: bf16[2]) {
  %y = attn.temper %k, %temp : bf16[B, T, 2, 128]
  return %y
}

// -----

graph @one_for_each_head (%k: bf16[B, T, 2, 128], %temp: bf16[128]) {
  %y = attn.temper %k, %temp
  return %y
}
// ERROR: error[RG010]: attn.temper: operand by is bf16[128], expected float[H]
