graph @valid (%x: bf16[B, T, 1280], %w: bf16[1280, 1, 4], %g: bf16[6, 640, 2], %b: bf16[1280]) {
  %tail = state.tail %x {rows = 3}
  %y = seq.conv %tail, %w, bias=%b {groups = 1280} : bf16[B, T, 1280]
  %z = seq.conv %tail, %g {groups = 2} : bf16[B, T, 6]
  return %y, %z
}

// -----

graph @a_tail_too_short (%x: bf16[B, T, 12], %w: bf16[12, 1, 4]) {
  %m = state.tail %x {rows = 2}
  %layers.0.attn.conv = seq.conv %m, %w {groups = 12}
  return %layers.0.attn.conv
}
// ERROR: error[RG034]: seq.conv: reads 3 rows back in memory<bf16; x [12]; fixed 2>
//          --> seq.conv.rg:12:25   layers.0.attn
//            12 |   %layers.0.attn.conv = seq.conv %m, %w {groups = 12}
//               |                         ^^^^^^^^
//          = help: keep a tail of as many

// -----

graph @groups_that_do_not_fit (%x: bf16[B, T, 12], %w: bf16[12, 2, 4]) {
  %m = state.tail %x {rows = 3}
  %y = seq.conv %m, %w {groups = 12}
  return %y
}
// ERROR: error[RG034]: seq.conv: 12 groups of 2 channels, 12 in and 12 out

// -----

graph @keys_and_values (%k: bf16[B, T, 2, 6], %w: bf16[12, 1, 4]) {
  %m = state.kv %k, %k
  %y = seq.conv %m, %w {groups = 12}
  return %y
}
// ERROR: error[RG010]: seq.conv: operand memory is memory<bf16; k [2, 6], v [2, 6]>, expected memory<x C>
