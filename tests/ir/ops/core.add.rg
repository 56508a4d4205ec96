graph @valid (%a, %b: bf16[B, T, 64], %p, %q: f32[B, S@m, 8]) {
  %y = core.add %a, %b : bf16[B, T, 64]
  %z = core.add %p, %q : f32[B, S@m, 8]
  return %y, %z
}

// -----

graph @rows_of_two_sequences (%a: bf16[B, T, 64], %b: bf16[B, S@layers.0.attn.memory, 64]) {
  %layers.1.mlp.out = core.add %a, %b
  return %layers.1.mlp.out
}
// ERROR: error[RG030]: core.add: operands run along T and S@layers.0.attn.memory
//          --> core.add.rg:10:23   layers.1.mlp
//            10 |   %layers.1.mlp.out = core.add %a, %b
//               |                       ^^^^^^^^
//          = help: only state ops turn T rows into a memory, and only mixing ops read a memory from T rows

// -----

graph @dtypes_differ (%a: bf16[B, T, 64], %b: f32[B, T, 64]) {
  %y = core.add %a, %b
  return %y
}
// ERROR: error[RG010]: core.add: operand b is f32[B, T, 64], expected bf16[B, T, 64], the dtype of a
