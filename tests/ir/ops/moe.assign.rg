graph @valid (%tokens: i64[B, T]) {
  %table = weight.load : i64[1024, 6]
  %e = moe.assign %tokens, %table : i64[B, T, 6]
  return %e
}

// -----

graph @a_table_of_numbers (%tokens: i64[B, T]) {
  %table = weight.load : bf16[1024, 6]
  %e = moe.assign %tokens, %table
  return %e
}
// ERROR: error[RG010]: moe.assign: operand table is bf16[1024, 6], expected int[V, K]
