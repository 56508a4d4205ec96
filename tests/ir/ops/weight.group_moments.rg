graph @valid (%x: f32[B, T, 12], %h: f32[B, T, 32]) {
  %w = weight.load : bf16[64, 32]
  %c = weight.group_moments %w, x=%h {groups = [0, 0, 1, 1], parts = 2} : f64[2, 16, 16]
  %v = weight.load : bf16[16, 12]
  %d = weight.group_moments %v, x=%x {groups = [0, 1, 1, 0], parts = 3} : f64[3, 4, 4]
  return %c, %d
}

// -----

graph @a_group_that_is_not_there (%x: f32[B, T, 12]) {
  %w = weight.load : bf16[16, 12]
  %c = weight.group_moments %w, x=%x {groups = [0, 2], parts = 2}
  return %c
}
// ERROR: error[RG034]: weight.group_moments: groups [0, 2]
