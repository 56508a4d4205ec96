graph @valid (%x: bf16[B, T, 64]) {
  %w = weight.load : bf16[128, 64]
  %b = weight.load : bf16[128]
  %q = core.linear %x, %w : bf16[B, T, 128]
  %r = core.linear %x, %w, bias=%b : bf16[B, T, 128]
  return %q, %r
}

// -----

graph @widths_differ (%x: bf16[B, T, 64]) {
  %w = weight.load : bf16[128, 32]
  %layers.3.attn.q = core.linear %x, %w : bf16[B, T, 128]
  return %layers.3.attn.q
}
// ERROR: error[RG010]: core.linear: operand weight is bf16[128, 32], expected float[O, I]
//          --> core.linear.rg:13:22   layers.3.attn
//            13 |   %layers.3.attn.q = core.linear %x, %w : bf16[B, T, 128]
//               |                      ^^^^^^^^^^^
//          = help: where ... = B, T, I = 64, O = 128; B is the batch, T a sequence axis, other letters are integers

// -----

graph @two_biases (%x: bf16[B, T, 64]) {
  %w = weight.load : bf16[128, 64]
  %b = weight.load : bf16[128]
  %q = core.linear %x, %w, bias=%b, bias=%b
  return %q
}
// ERROR: error[RG007]: core.linear: 2 values for operand bias, expected 1 or none

// -----

graph @along_the_sequence (%x: bf16[B, T], %w: bf16[4, T]) {
  %q = core.linear %x, %w
  return %q
}
// ERROR: error[RG010]: core.linear: operand x is bf16[B, T], expected float[..., I]
