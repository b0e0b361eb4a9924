"""Training of kernels, layer by layer."""
