graph @valid (%a: bf16[B, T, 64], %b: bf16[B, T, 64]) {
  %y = core.concat %a, %b : bf16[B, T, 128]
  return %y
}

// -----

graph @rows_of_two_sequences (%a: bf16[B, T, 64], %b: bf16[B, S@m, 64]) {
  %y = core.concat %a, %b
  return %y
}
// ERROR: error[RG030]: core.concat: operands run along T and S@m

// -----

graph @along_the_sequence (%a, %b: bf16[B, T]) {
  %y = core.concat %a, %b
  return %y
}
// ERROR: error[RG034]: core.concat: bf16[B, T] has no channels

// -----

graph @dtypes_differ (%a: bf16[B, T, 4], %b: f16[B, T, 4]) {
  %y = core.concat %a, %b
  return %y
}
// ERROR: error[RG010]: core.concat: operand xs is f16[B, T, 4], expected bf16[*], the dtype of xs
