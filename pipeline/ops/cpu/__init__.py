"""Operators compiled with numba."""
