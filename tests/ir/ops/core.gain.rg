graph @valid (%x: bf16[B, T, 8, 16], %gate: bf16[B, T, 8, 1]) {
  %channel = weight.load : bf16[16]
  %one = weight.load : f32[1]
  %y = core.gain %x, %gate : bf16[B, T, 8, 16]
  %z = core.gain %y, %channel : bf16[B, T, 8, 16]
  %all = core.gain %z, %one : bf16[B, T, 8, 16]
  return %all
}

// -----

graph @another_width (%x: bf16[B, T, 8, 16], %gate: bf16[B, T, 8]) {
  %y = core.gain %x, %gate
  return %y
}
// ERROR: error[RG034]: core.gain: bf16[B, T, 8] along bf16[B, T, 8, 16]

// -----

graph @more_axes (%x: bf16[16], %gate: bf16[1, 16]) {
  %y = core.gain %x, %gate
  return %y
}
// ERROR: error[RG034]: core.gain: bf16[1, 16] along bf16[16]

// -----

graph @another_sequence (%x: bf16[B, T, 16], %gate: bf16[B, S@m, 1]) {
  %y = core.gain %x, %gate
  return %y
}
// ERROR: error[RG030]: core.gain: operands run along T and S@m

// -----

graph @dtypes_differ (%x: bf16[B, T, 16], %gate: f32[B, T, 1]) {
  %y = core.gain %x, %gate
  return %y
}
// ERROR: error[RG034]: core.gain: f32 beside bf16
