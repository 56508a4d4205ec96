graph @valid () {
  %first = weight.load : bf16[8, 1, 2]
  %second = weight.load : bf16[8, 4, 2]
  %w, %b = weight.join_convs %first, %second : bf16[8, 4, 3], bf16[8]
  %c = weight.load : bf16[8]
  %w_2, %b_2 = weight.join_convs %first, %second, first_bias=%c, second_bias=%c
  return %w, %b, %w_2, %b_2
}

// -----

graph @groups_that_do_not_divide () {
  %first = weight.load : bf16[8, 1, 2]
  %second = weight.load : bf16[8, 3, 2]
  %w, %b = weight.join_convs %first, %second
  return %w
}
// ERROR: error[RG034]: weight.join_convs: 8 channels into groups of 3, 8 out
