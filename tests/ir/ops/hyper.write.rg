graph @valid (%x: bf16[B, T, 4, 64], %out: bf16[B, T, 64], %post: f32[B, T, 4], %comb: f32[B, T, 4, 4]) {
  %y = hyper.write %x, %out, %post, %comb : bf16[B, T, 4, 64]
  return %y
}

// -----

graph @maps_of_other_streams (%x: bf16[B, T, 4, 64], %out: bf16[B, T, 64], %post: f32[B, T, 4], %comb: f32[B, T, 2, 2]) {
  %y = hyper.write %x, %out, %post, %comb
  return %y
}
// ERROR: error[RG010]: hyper.write: operand comb is f32[B, T, 2, 2], expected f32[B, T, N, N], the dtype of post
