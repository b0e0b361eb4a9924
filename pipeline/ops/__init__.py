"""The operators of the hot loops: one picker an operator, one folder a backend."""
