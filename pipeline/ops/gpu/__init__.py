"""Operators in Triton."""
