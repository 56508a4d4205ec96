graph @valid (%x: bf16[B, T, 64], %w: bf16[B, T, 2], %e: i64[B, T, 2]) {
  %gate_up = weight.load : bf16[8, 64, 64]
  %down = weight.load : bf16[8, 64, 32]
  %gate_up_bias = weight.load : bf16[8, 64]
  %down_bias = weight.load : bf16[8, 64]
  %y = moe.experts %x, %w, %e, %gate_up, %down : bf16[B, T, 64]
  %z = moe.experts %x, %w, %e, %gate_up, %down, gate_up_bias=%gate_up_bias, down_bias=%down_bias {activation = "quick_gelu", limit = 7.0, shift = 1.0} : bf16[B, T, 64]
  return %y, %z
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

// -----

graph @no_room (%x: bf16[B, T, 64], %w: bf16[B, T, 2], %e: i64[B, T, 2]) {
  %gate_up = weight.load : bf16[8, 64, 64]
  %down = weight.load : bf16[8, 64, 32]
  %y = moe.experts %x, %w, %e, %gate_up, %down {limit = 0.0}
  return %y
}
// ERROR: error[RG034]: moe.experts: limit is 0.0
