graph @valid (%tokens: i64[B, T]) {
  %table = weight.load : bf16[100, 64]
  %x = core.embed %tokens, %table : bf16[B, T, 64]
  return %x
}

// -----

graph @tokens_are_integers (%tokens: bf16[B, T]) {
  %table = weight.load : bf16[100, 64]
  %x = core.embed %tokens, %table
  return %x
}
// ERROR: error[RG010]: core.embed: operand tokens is bf16[B, T], expected int[...]
