graph @valid (%x: bf16[B, T, 64]) {
  %w = weight.load : bf16[32, 64]
  %y = kernel.rows_and_pool %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
  %h, %z = kernel.rows_and_pool %x, %w {takes = ["a", "w"], gives = ["h", "y"], body = ["%h = core.scale %a {factor = 0.5} : bf16[B, T, 64]", "%y = core.linear %h, %w : bf16[B, T, 32]"]} : bf16[B, T, 64], bf16[B, T, 32]
  return %h, %y, %z
}

// -----

graph @one_name_for_two_operands (%x: bf16[B, T, 64]) {
  %y = kernel.rows_and_pool %x, %x {takes = ["a", "a"], gives = ["y"], body = ["%y = core.add %a, %a : bf16[B, T, 64]"]}
  return %y
}
// ERROR: error[RG034]: kernel.rows_and_pool: 2 operands, and names for 1
//          --> kernel.rows_and_pool.rg:11:8   %y
//            11 |   %y = kernel.rows_and_pool %x, %x {takes = ["a", "a"], gives = ["y"], body = ["%y = core.add %a, %a : bf16[B, T, 64]"]}
//               |        ^^^^^^^^^^^^^^^^^^^^
//          = help: takes names each operand once

// -----

graph @what_is_not_made (%x: bf16[B, T, 64]) {
  %y = kernel.rows_and_pool %x {takes = ["a"], gives = ["z"], body = ["%y = core.add %a, %a : bf16[B, T, 64]"]}
  return %y
}
// ERROR: error[RG034]: kernel.rows_and_pool: no %z is made
//          --> kernel.rows_and_pool.rg:23:8   %y
//            23 |   %y = kernel.rows_and_pool %x {takes = ["a"], gives = ["z"], body = ["%y = core.add %a, %a : bf16[B, T, 64]"]}
//               |        ^^^^^^^^^^^^^^^^^^^^
//          = help: gives names values of the body

// -----

graph @a_body_that_breaks_a_rule (%x: bf16[B, T, 64]) {
  %y = kernel.rows_and_pool %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a"]}
  return %y
}
// ERROR: error[RG034]: kernel.rows_and_pool: in its body, core.scale: attribute factor: missing
//          --> kernel.rows_and_pool.rg:35:8   %y
//            35 |   %y = kernel.rows_and_pool %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a"]}
//               |        ^^^^^^^^^^^^^^^^^^^^
//          = help: a body is ops over what the kernel takes
