"""Tensors between steps: safetensors whose header says what they hold."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.errors import DataError
from pipeline.files import whole


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """The library reports a full disk as an error of its own; say which file it was."""
    try:
        yield
    except SafetensorError as error:
        raise DataError(f"cannot write {path}: {error}.") from error


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], kind: str, **header: Any
) -> None:
    """Write tensors as safetensors whose header holds ``kind`` and ``header`` as JSON."""
    text = json.dumps({"kind": kind, **header}, sort_keys=True)
    with whole(path) as partial, _named(path):
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"less": text})


SAFETENSORS_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


@contextmanager
def create_tensors(
    path: Path, form: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], kind: str, **header: Any
) -> Iterator[dict[str, torch.Tensor]]:
    """A safetensors file on disk to be filled piece by piece: name to a memory-mapped tensor.

    The whole file is allocated first, so that a full disk is an error here and not a crash later.
    Not renamed on its own: use within :func:`whole` or :func:`whole_folder`.
    """
    layout: dict[str, Any] = {"__metadata__": {"less": json.dumps({"kind": kind, **header})}}
    end = 0
    # Widest first, as the format's own writer does, so that every tensor starts aligned.
    for name, (dtype, shape) in sorted(form.items(), key=lambda item: -item[1][0].itemsize):
        start, end = end, end + dtype.itemsize * math.prod(shape)
        layout[name] = {
            "dtype": SAFETENSORS_NAMES[dtype], "shape": shape, "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(layout).encode()
    text += b" " * (-len(text) % 8)
    with path.open("w+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, 8 + len(text) + end)
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.flush()
        data = torch.from_numpy(np.memmap(handle, np.uint8, "r+", offset=8 + len(text)))
        yield {
            name: data[slice(*layout[name]["data_offsets"])].view(dtype).view(shape)
            for name, (dtype, shape) in form.items()
        }


@contextmanager
def open_tensors(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a file of ``kind`` for reading slices: (safetensors handle, header).

    Raises:
        DataError: missing, truncated, not safetensors, or of another kind.
    """
    try:
        handle = safe_open(path, framework="pt")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run the step that makes it.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again.") from error
    with handle:
        try:
            header = json.loads((handle.metadata() or {}).get("less", "{}"))
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is damaged ({error}); delete it and run again.") from error
        found = header.get("kind") if isinstance(header, dict) else None
        if found != kind:
            found = found or "of no known kind"
            raise DataError(f"{path} should hold {kind}, but is {found}.")
        yield handle, header


def load_tensors(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All tensors of a file of ``kind``, and its header; raises as :func:`open_tensors`."""
    with open_tensors(path, kind) as (handle, header):
        names: list[str] = handle.keys()
        return {name: handle.get_tensor(name) for name in names}, header
