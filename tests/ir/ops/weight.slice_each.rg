graph @valid () {
  %kv = weight.load : bf16[4096, 512]
  %uk = weight.slice_each %kv {parts = 16, start = 0, stop = 128} : bf16[2048, 512]
  return %uk
}

// -----

graph @uneven_parts () {
  %kv = weight.load : bf16[100, 8]
  %uk = weight.slice_each %kv {parts = 16, start = 0, stop = 2}
  return %uk
}
// ERROR: error[RG034]: weight.slice_each: bf16[100, 8] in 16 parts

// -----

graph @beyond_a_part () {
  %kv = weight.load : bf16[64, 8]
  %uk = weight.slice_each %kv {parts = 16, start = 2, stop = 5}
  return %uk
}
// ERROR: error[RG034]: weight.slice_each: rows 2 to 5 of 4
