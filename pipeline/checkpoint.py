"""Load and save trained kernels: a face of :mod:`pipeline.training.checkpoint`."""

from __future__ import annotations

from .training.checkpoint import kernels_for, load_kernels, save_kernels

__all__ = ["kernels_for", "load_kernels", "save_kernels"]
