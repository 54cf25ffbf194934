"""The mathematics of the path: pure functions of tensors.  Start reading here: path, solvers, sde."""
