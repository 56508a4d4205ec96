graph @valid () {
  %c = weight.load : f64[64, 64]
  %a = weight.load : bf16[32, 64]
  %b = weight.load : bf16[32, 64]
  %s = weight.load : bf16[16]
  %t = weight.load : bf16[16]
  %d = weight.load : f64[16, 32]
  %u = weight.load : f64[2, 16, 16]
  %q, %k, %m, %n = weight.fit_scores %c, %a, %b, %s, %t, %d, %u {groups = [0, 1], merged = [0, 0], eps = 1e-06}
  return %q, %k, %m, %n
}

// -----

graph @queries_of_heads_that_are_not_there () {
  %c = weight.load : f64[64, 64]
  %a = weight.load : bf16[48, 64]
  %b = weight.load : bf16[32, 64]
  %s = weight.load : bf16[16]
  %d = weight.load : f64[16, 32]
  %u = weight.load : f64[2, 16, 16]
  %q, %k, %m, %n = weight.fit_scores %c, %a, %b, %s, %s, %d, %u {groups = [0, 1], merged = [0, 0], eps = 1e-06}
  return %q, %k, %m, %n
}
// ERROR: error[RG034]: weight.fit_scores: 48 and 32 rows for heads of 16

// -----

graph @more_heads_than_down_makes () {
  %c = weight.load : f64[64, 64]
  %a = weight.load : bf16[32, 64]
  %s = weight.load : bf16[16]
  %d = weight.load : f64[16, 32]
  %u = weight.load : f64[2, 16, 16]
  %q, %k, %m, %n = weight.fit_scores %c, %a, %a, %s, %s, %d, %u {groups = [0, 1], merged = [0, 1], eps = 1e-06}
  return %q, %k, %m, %n
}
// ERROR: error[RG034]: weight.fit_scores: down gives 16 channels
