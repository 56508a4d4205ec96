graph @valid (%z: bf16[B, T, 8, 16]) {
  %c = weight.moment a=%z {source_b = "layers.0.attn.out"} : f64[128, 64]
  return %c
}

// -----

graph @one_side (%z: bf16[B, T, 8, 16]) {
  %c = weight.moment a=%z : f64[128, 64]
  return %c
}
// ERROR: error[RG034]: weight.moment: side b is given twice or not at all

// -----

graph @another_width (%z: bf16[B, T, 8, 16]) {
  %c = weight.moment a=%z, b=%z : f64[128, 64]
  return %c
}
// ERROR: error[RG034]: weight.moment: side b has 128 channels, not 64

// -----

graph @of_a_weight () {
  %w = weight.load : bf16[64, 64]
  %c = weight.moment a=%w, b=%w : f64[64, 64]
  return %c
}
// ERROR: error[RG034]: weight.moment: side a is bf16[64, 64]

// -----

graph @of_a_memorys_rows (%z: bf16[B, S@m, 64]) {
  %c = weight.moment a=%z, b=%z : f64[64, 64]
  return %c
}
// ERROR: error[RG034]: weight.moment: side a is bf16[B, S@m, 64]
