"""Pick the backend of the operators over whole sequences.

Every operator exists in ``reference/sequence`` (plain, obviously right, any
device) and in a compiled form with the same signature.
"""

from __future__ import annotations

from types import ModuleType

import torch


def backend(device: torch.device) -> ModuleType:
    """The module that implements the operators for ``device``."""
    if device.type == "cpu":
        from .cpu import sequence as cpu

        return cpu
    if device.type == "cuda":
        from .gpu import sequence as gpu

        return gpu
    from .reference import sequence as reference

    return reference
