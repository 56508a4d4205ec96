graph @valid (%x: bf16[B, T, 192]) {
  %gate = core.slice %x {start = 0, stop = 64} : bf16[B, T, 64]
  return %gate
}

// -----

graph @beyond_the_end (%x: bf16[B, T, 192]) {
  %y = core.slice %x {start = 128, stop = 256}
  return %y
}
// ERROR: error[RG034]: core.slice: channels 128 to 256 of 192

// -----

graph @of_the_sequence (%x: i64[B, T]) {
  %y = core.slice %x {start = 0, stop = 1}
  return %y
}
// ERROR: error[RG010]: core.slice: operand x is i64[B, T], expected any[..., I]
