graph @valid (%x: bf16[B, T, 64]) {
  %y = core.scale %x {factor = 0.5} : bf16[B, T, 64]
  return %y
}

// -----

graph @no_factor (%x: bf16[B, T, 64]) {
  %y = core.scale %x
  return %y
}
// ERROR: error[RG006]: core.scale: attribute factor: missing

// -----

graph @misspelt (%x: bf16[B, T, 64]) {
  %y = core.scale %x {facter = 0.5}
  return %y
}
// ERROR: error[RG006]: core.scale: attribute facter: unknown; did you mean factor?
//          --> core.scale.rg:17:8
//            17 |   %y = core.scale %x {facter = 0.5}
//               |        ^^^^^^^^^^
//          = help: core.scale takes factor = a finite number
