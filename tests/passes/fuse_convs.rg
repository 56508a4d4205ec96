// fuse-convs: a convolution of each channel and one of groups, in one.
// RUN: fuse-convs

graph @both (%x: f32[B, T, 8]) {
  %model.layers.0.a.weight = weight.load : f32[8, 1, 2]
  %model.layers.0.a.bias = weight.load : f32[8]
  %model.layers.0.b.weight = weight.load : f32[8, 4, 3]
  %model.layers.0.b.bias = weight.load : f32[8]
  %layers.0.tail = state.tail %x {rows = 1}
  %layers.0.first = seq.conv %layers.0.tail, %model.layers.0.a.weight, bias=%model.layers.0.a.bias {groups = 8}
  %layers.0.tail_2 = state.tail %layers.0.first, initial=%model.layers.0.a.bias {rows = 2}
  %layers.0.second = seq.conv %layers.0.tail_2, %model.layers.0.b.weight, bias=%model.layers.0.b.bias {groups = 2}
  return %layers.0.second
}
// CHECK: %tail = state.tail %x {rows = 3} : memory<f32; x [8]; fixed 3>
// CHECK: %model.layers.*.b.weight, %model.layers.*.b.bias = weight.join_convs %model.layers.*.a.weight, %model.layers.*.b.weight.original, first_bias=%model.layers.*.a.bias, second_bias=%model.layers.*.b.bias.original : f32[8, 4, 4], f32[8]
// CHECK: %second = seq.conv %tail, %model.layers.*.b.weight, bias=%model.layers.*.b.bias {groups = 2} : f32[B, T, 8]
// CHECK-NOT: tail_2

// -----  zeros before the second one are not what the first one gives there

graph @padded_apart (%x: f32[B, T, 8]) {
  %a = weight.load : f32[8, 1, 2]
  %bias = weight.load : f32[8]
  %b = weight.load : f32[8, 4, 2]
  %layers.0.tail = state.tail %x {rows = 1}
  %layers.0.first = seq.conv %layers.0.tail, %a, bias=%bias {groups = 8}
  %layers.0.tail_2 = state.tail %layers.0.first {rows = 1}
  %layers.0.second = seq.conv %layers.0.tail_2, %b {groups = 2}
  return %layers.0.second
}
// ERROR: error[RG114]: fuse-convs: layer 0: seq.conv %layers.0.second does not see before the start what seq.conv %layers.0.first gives for zeros

// -----  one that is read in between

graph @read_between (%x: f32[B, T, 8]) {
  %a = weight.load : f32[8, 1, 2]
  %b = weight.load : f32[8, 4, 2]
  %layers.0.tail = state.tail %x {rows = 1}
  %layers.0.first = seq.conv %layers.0.tail, %a {groups = 8}
  %layers.0.tail_2 = state.tail %layers.0.first {rows = 1}
  %layers.0.second = seq.conv %layers.0.tail_2, %b {groups = 2}
  %layers.0.sum = core.add %layers.0.first, %layers.0.second
  return %layers.0.sum
}
// ERROR: error[RG114]: fuse-convs: layer 0: seq.conv %layers.0.first or one of the tails is read by other ops too
