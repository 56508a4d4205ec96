"""Statistics over calibration text, the fits that use them, and folding: weights evaluated and written."""
