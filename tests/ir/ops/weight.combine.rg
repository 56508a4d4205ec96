graph @valid () {
  %a = weight.load : f64[64, 64]
  %b = weight.load : f64[64, 64]
  %t = weight.combine %a, %b {factors = [1.0, -1.0]} : f64[64, 64]
  return %t
}

// -----

graph @factors_are_missing () {
  %a = weight.load : f64[64, 64]
  %t = weight.combine %a, %a {factors = [1.0]}
  return %t
}
// ERROR: error[RG034]: weight.combine: 1 factors for 2

// -----

graph @of_integers () {
  %a = weight.load : i8[64, 64]
  %t = weight.combine %a {factors = [1.0]}
  return %t
}
// ERROR: error[RG034]: weight.combine: parts are i8[64, 64]
