graph @valid (%q: bf16[B, T, 2, 4, 16]) {
  %y = core.mean %q : bf16[B, T, 2, 16]
  return %y
}

// -----

graph @one_axis (%q: bf16[16]) {
  %y = core.mean %q
  return %y
}
// ERROR: error[RG010]: core.mean: operand x is bf16[16], expected float[..., H, D]
