// dce and cse.
// RUN: dce

graph @dead (%x: f32[B, T, 12]) {
  %unread = core.scale %x {factor = 2.0}
  %unread_2 = core.scale %unread {factor = 2.0}
  %y = core.scale %x {factor = 3.0}
  return %y
}
// CHECK: %y = core.scale %x {factor = 3.0} : f32[B, T, 12]
// CHECK-NOT: unread

// -----  nothing to do

graph @alive (%x: f32[B, T, 12]) {
  %y = core.scale %x {factor = 3.0}
  return %y
}
// REFUSED: alive: no op to remove: none unread

// -----  the same twice
// RUN: cse

graph @equal (%x: f32[B, T, 12]) {
  %a = core.scale %x {factor = 3.0}
  %b = core.scale %x {factor = 3.0}
  %y = core.add %a, %b
  return %y
}
// CHECK: %y = core.add %a, %a : f32[B, T, 12]
// CHECK-NOT: %b

// -----  memories have identities and stay apart
// RUN: cse

graph @memories (%q: f32[B, T, 2, 8], %k: f32[B, T, 2, 8], %v: f32[B, T, 2, 8]) {
  %m = state.kv %k, %v
  %n = state.kv %k, %v
  %a = attn.attend %q, %m {scale = 0.25}
  %b = attn.attend %q, %n {scale = 0.25}
  %y = core.add %a, %b
  return %y
}
// CHECK: %y = core.add %a, %b : f32[B, T, 2, 8]
// REFUSED: memories: no op to remove: none computed twice
