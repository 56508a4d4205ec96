graph @valid (%logits: bf16[B, T, 1024]) {
  %y = core.softcap %logits {cap = 30.0} : bf16[B, T, 1024]
  return %y
}

// -----

graph @cap_is_negative (%logits: bf16[B, T, 1024]) {
  %y = core.softcap %logits {cap = -30.0}
  return %y
}
// ERROR: error[RG034]: core.softcap: cap is -30.0
