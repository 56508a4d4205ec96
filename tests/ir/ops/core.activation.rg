graph @valid (%x: bf16[B, T, 192]) {
  %y = core.activation %x {kind = "silu"} : bf16[B, T, 192]
  return %y
}

// -----

graph @unknown_kind (%x: bf16[B, T, 192]) {
  %y = core.activation %x {kind = "swish"}
  return %y
}
// ERROR: error[RG006]: core.activation: attribute kind: 'swish' is not a choice
