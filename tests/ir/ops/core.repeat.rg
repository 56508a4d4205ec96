graph @valid (%x: bf16[B, T, 16]) {
  %k = core.repeat %x {parts = 8} : bf16[B, T, 8, 16]
  return %k
}

// -----

graph @no_parts (%x: bf16[B, T, 16]) {
  %k = core.repeat %x {parts = 0}
  return %k
}
// ERROR: error[RG034]: core.repeat: 0 parts
