graph @valid (%h: bf16[B, T, 64]) {
  %x, %post, %comb = hyper.spread %h {count = 4}
  return %x, %post, %comb
}

// -----

graph @no_streams (%h: bf16[B, T, 64]) {
  %x, %post, %comb = hyper.spread %h {count = 0}
  return %x
}
// ERROR: error[RG034]: hyper.spread: 0 streams
