graph @valid () {
  %p = weight.load : f64[4, 4, 2]
  %f = weight.phase_maps %p {width = 16, channels = 8} : f64[4, 16, 16]
  return %f
}

// -----

graph @other_frequencies () {
  %p = weight.load : f64[4, 4, 2]
  %f = weight.phase_maps %p {width = 16, channels = 16}
  return %f
}
// ERROR: error[RG034]: weight.phase_maps: 4 frequencies, 16 channels of 16 turn
