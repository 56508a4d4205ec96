graph @valid () {
  %e = weight.load_each {tensors = "experts.{}.up_proj.weight"} : bf16[8, 32, 64]
  return %e
}

// -----

graph @no_number () {
  %e = weight.load_each {tensors = "experts.up_proj.weight"} : bf16[8, 32, 64]
  return %e
}
// ERROR: error[RG034]: weight.load_each: tensors is 'experts.up_proj.weight'

// -----

graph @no_count () {
  %e = weight.load_each {tensors = "experts.{}"} : bf16[]
  return %e
}
// ERROR: error[RG034]: weight.load_each: there are no tensors
