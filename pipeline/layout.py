"""Where files of a folder lie, for the steps that write them and the steps that read them."""

from __future__ import annotations

from pathlib import Path


def layer_file(folder: Path, layer: int) -> Path:
    """The features of ``layer`` in a folder of dumps."""
    return folder / f"layer{layer:03d}.safetensors"
