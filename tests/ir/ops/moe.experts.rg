graph @valid (%x: bf16[B, T, 64], %w: bf16[B, T, 2], %e: i64[B, T, 2]) {
  %gate_up = weight.load : bf16[8, 64, 64]
  %down = weight.load : bf16[8, 64, 32]
  %y = moe.experts %x, %w, %e, %gate_up, %down : bf16[B, T, 64]
  return %y
}

// -----

graph @no_gate (%x: bf16[B, T, 64], %w: bf16[B, T, 2], %e: i64[B, T, 2]) {
  %gate_up = weight.load : bf16[8, 32, 64]
  %down = weight.load : bf16[8, 64, 32]
  %y = moe.experts %x, %w, %e, %gate_up, %down
  return %y
}
// ERROR: error[RG034]: moe.experts: gate_up has 32 rows and down 32 columns

// -----

graph @choices_of_another_sequence (%x: bf16[B, T, 64], %w: bf16[B, S@m, 2], %e: i64[B, S@m, 2]) {
  %gate_up = weight.load : bf16[8, 64, 64]
  %down = weight.load : bf16[8, 64, 32]
  %y = moe.experts %x, %w, %e, %gate_up, %down
  return %y
}
// ERROR: error[RG030]: moe.experts: operands run along T and S@m
