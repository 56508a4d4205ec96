graph @valid (%x: bf16[B, T, 4, 64]) {
  %fn = weight.load : f32[24, 256]
  %base = weight.load : f32[24]
  %scale = weight.load : f32[3]
  %u, %post, %comb = hyper.read %x, %fn, %base, %scale {eps = 1e-06, floor = 1e-06, iterations = 20}
  return %u, %post, %comb
}

// -----

graph @a_map_of_other_streams (%x: bf16[B, T, 2, 64]) {
  %fn = weight.load : f32[24, 256]
  %base = weight.load : f32[24]
  %scale = weight.load : f32[3]
  %u, %post, %comb = hyper.read %x, %fn, %base, %scale {eps = 1e-06, floor = 1e-06, iterations = 20}
  return %u
}
// ERROR: error[RG034]: hyper.read: a map of 24 by 256 from 2 streams of 64

// -----

graph @no_iterations (%x: bf16[B, T, 4, 64]) {
  %fn = weight.load : f32[24, 256]
  %base = weight.load : f32[24]
  %scale = weight.load : f32[3]
  %u, %post, %comb = hyper.read %x, %fn, %base, %scale {eps = 1e-06, floor = 1e-06, iterations = 0}
  return %u
}
// ERROR: error[RG034]: hyper.read: 0 iterations
