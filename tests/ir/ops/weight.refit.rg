graph @valid () {
  %gram = weight.load : f64[128, 128]
  %cross = weight.load : f64[128, 64]
  %prior = weight.load : bf16[64, 128]
  %o = weight.refit %gram, %cross, %prior {ridge = 0.0001} : bf16[64, 128]
  return %o
}

// -----

graph @single_precision () {
  %gram = weight.load : f32[128, 128]
  %prior = weight.load : bf16[64, 128]
  %o = weight.refit %gram, %gram, %prior
  return %o
}
// ERROR: error[RG010]: weight.refit: operand gram is f32[128, 128], expected f64[I, I]

// -----

graph @negative_ridge () {
  %gram = weight.load : f64[4, 4]
  %prior = weight.load : bf16[4, 4]
  %o = weight.refit %gram, %gram, %prior {ridge = -1.0}
  return %o
}
// ERROR: error[RG034]: weight.refit: ridge is -1.0

// -----

graph @boundless_ridge () {
  %gram = weight.load : f64[4, 4]
  %prior = weight.load : bf16[4, 4]
  %o = weight.refit %gram, %gram, %prior {ridge = 1e300}
  return %o
}
// ERROR: error[RG034]: weight.refit: ridge is 1e+300
