"""`deepcluster estimate`: what a run will take, from the size of the data, a short calibration and plain arithmetic."""
