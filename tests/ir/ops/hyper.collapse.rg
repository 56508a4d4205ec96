graph @valid (%x: bf16[B, T, 4, 64]) {
  %fn = weight.load : f32[4, 256]
  %base = weight.load : f32[4]
  %scale = weight.load : f32[1]
  %h = hyper.collapse %x, %fn, %base, %scale {eps = 1e-06, floor = 1e-06} : bf16[B, T, 64]
  return %h
}

// -----

graph @no_eps (%x: bf16[B, T, 4, 64]) {
  %fn = weight.load : f32[4, 256]
  %base = weight.load : f32[4]
  %scale = weight.load : f32[1]
  %h = hyper.collapse %x, %fn, %base, %scale {eps = 0.0, floor = 1e-06}
  return %h
}
// ERROR: error[RG034]: hyper.collapse: eps is 0.0, floor 1e-06
