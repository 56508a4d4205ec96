graph @valid (%x: bf16[B, T, 64]) {
  %y = core.clamp %x {low = -7.0, high = 7.0} : bf16[B, T, 64]
  %z = core.clamp %x {high = 7.0} : bf16[B, T, 64]
  return %y, %z
}

// -----

graph @nothing_between (%x: bf16[B, T, 64]) {
  %y = core.clamp %x {low = 7.0, high = -7.0}
  return %y
}
// ERROR: error[RG034]: core.clamp: low 7.0, high -7.0
