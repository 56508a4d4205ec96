graph @valid (%x: bf16[B, T, 128]) {
  %q = core.unflatten %x {parts = 8} : bf16[B, T, 8, 16]
  return %q
}

// -----

graph @parts_do_not_divide (%x: bf16[B, T, 128]) {
  %q = core.unflatten %x {parts = 6}
  return %q
}
// ERROR: error[RG034]: core.unflatten: 128 channels in 6 parts
