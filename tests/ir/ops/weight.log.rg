graph @valid () {
  %mass = weight.load : f64[8]
  %s = weight.log %mass : f64[8]
  return %s
}

// -----

graph @of_integers () {
  %mass = weight.load : i64[8]
  %s = weight.log %mass
  return %s
}
// ERROR: error[RG010]: weight.log: operand x is i64[8], expected float[...]
