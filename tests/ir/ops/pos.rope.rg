graph @valid (%q: bf16[B, T, 8, 16], %pos: i64[B, T], %k: bf16[B, S@m, 2, 64], %rows: i64[B, S@m]) {
  %qr = pos.rope %q, %pos {base = 10000.0, channels = 16} : bf16[B, T, 8, 16]
  %kr = pos.rope %k, %rows {base = 1e6, channels = 32, layout = "interleaved", scaling = "llama3", factor = 8.0, original = 8192} : bf16[B, S@m, 2, 64]
  %part = pos.rope %q, %pos {base = 10000.0, channels = 16, pairs = 2} : bf16[B, T, 8, 16]
  %mid = pos.rope %k, %rows {base = 10000.0, channels = 64, offset = 1.5} : bf16[B, S@m, 2, 64]
  return %qr, %kr, %part, %mid
}

// -----

graph @positions_of_another_sequence (%k: bf16[B, S@m, 2, 64], %pos: i64[B, T]) {
  %kr = pos.rope %k, %pos {base = 10000.0, channels = 16}
  return %kr
}
// ERROR: error[RG030]: pos.rope: operands run along S@m and T

// -----

graph @odd_channels (%q: bf16[B, T, 8, 16], %pos: i64[B, T]) {
  %qr = pos.rope %q, %pos {base = 10000.0, channels = 15}
  return %qr
}
// ERROR: error[RG034]: pos.rope: 15 channels of 16 rotate

// -----

graph @scaled_from_nothing (%q: bf16[B, T, 8, 16], %pos: i64[B, T]) {
  %qr = pos.rope %q, %pos {base = 10000.0, channels = 16, scaling = "yarn"}
  return %qr
}
// ERROR: error[RG034]: pos.rope: yarn without the original context

// -----

graph @low_above_high (%q: bf16[B, T, 8, 16], %pos: i64[B, T]) {
  %qr = pos.rope %q, %pos {base = 10000.0, channels = 16, scaling = "llama3", original = 64, low = 4.0}
  return %qr
}
// ERROR: error[RG034]: pos.rope: low 4.0, high 4.0

// -----

graph @no_base (%q: bf16[B, T, 8, 16], %pos: i64[B, T]) {
  %qr = pos.rope %q, %pos {base = 0.0, channels = 16}
  return %qr
}
// ERROR: error[RG034]: pos.rope: base 0.0, factor 1.0, amplitude 1.0

// -----

graph @more_pairs_than_there_are (%q: bf16[B, T, 8, 16], %pos: i64[B, T]) {
  %qr = pos.rope %q, %pos {base = 10000.0, channels = 16, pairs = 9}
  return %qr
}
// ERROR: error[RG034]: pos.rope: 9 pairs of 8 turn
