graph @valid () {
  %x = weight.load : f32[64, 64]
  %y = weight.cast %x {dtype = "bf16"} : bf16[64, 64]
  return %y
}

// -----

graph @to_integers () {
  %x = weight.load : f32[64, 64]
  %y = weight.cast %x {dtype = "i8"}
  return %y
}
// ERROR: error[RG006]: weight.cast: attribute dtype: 'i8' is not a choice
