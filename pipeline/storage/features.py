"""Where files of a folder lie, for the steps that write them and the steps that read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values."""


def layer_file(folder: Path, layer: int) -> Path:
    """Return where the features of ``layer`` lie in a folder of dumps."""
    return folder / f"layer{layer:03d}.safetensors"


def find_features(folders: list[Path], layer: int) -> Path:
    """Return the feature file of ``layer``.

    Raises:
        DataError: no folder holds it.
    """
    for folder in folders:
        if layer_file(folder, layer).exists():
            return layer_file(folder, layer)
    raise DataError(f"no features of layer {layer} in {', '.join(map(str, folders))}.")


def read_sequences(handle: Any, device: str) -> Iterator[QKV]:
    """Yield q (1, H, S, D), k, v (1, G, S, D), float32, one sequence after the other."""
    slices = [handle.get_slice(name) for name in ("q", "k", "v")]
    for row in range(slices[0].get_shape()[0]):
        q, k, v = (part[row : row + 1].float().to(device) for part in slices)
        yield q, k, v
