"""Tensors between steps: sealed safetensors whose header says what they hold."""

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

from ..errors import DamagedError, DataError
from .files import whole
from .seals import UNSEALED, check, seal


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say which file it was where the library reports a full disk as an error of its own."""
    try:
        yield
    except SafetensorError as error:
        raise DataError(f"cannot write {path}: {error}.") from error


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], kind: str, **header: Any
) -> None:
    """Write tensors as safetensors whose header holds ``kind`` and ``header`` as JSON."""
    text = _header(kind, header)
    with whole(path) as partial, _named(path):
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"less": text})
        seal(partial)


def _header(kind: str, header: Mapping[str, Any]) -> str:
    return json.dumps({"kind": kind, **header, "checksum": UNSEALED}, sort_keys=True)


SAFETENSORS_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


Form = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtypes and shapes by name."""


def tensor_bytes(form: Form) -> int:
    """Return bytes that tensors take."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in form.values())


@contextmanager
def create_tensors(
    path: Path, form: Form, kind: str, **header: Any
) -> Iterator[dict[str, torch.Tensor]]:
    """Make a safetensors file to fill piece by piece: name to a memory-mapped tensor.

    The whole file is allocated first, so that a full disk is an error here and not a crash later,
    and sealed at the end: its tensors must not change after. Not renamed on its own: use within
    :func:`whole` or :func:`whole_folder`.
    """
    layout: dict[str, Any] = {"__metadata__": {"less": _header(kind, header)}}
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
    seal(path)


@contextmanager
def open_tensors(
    path: str | os.PathLike[str], kind: str, folder: Path | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a file of ``kind`` for reading slices: (safetensors handle, header).

    Args:
        folder: that is made again if the file is damaged, where it is not the file alone.

    Raises:
        DataError: missing, or of another kind.
        DamagedError: not the safetensors that were written; see :func:`~.seals.check`.
    """
    check(path, folder)
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DamagedError(path, error, folder) from error
    with handle:
        header = json.loads((handle.metadata() or {}).get("less", "{}"))
        del header["checksum"]
        if header["kind"] != kind:
            raise DataError(f"{path} should hold {kind}, but is {header['kind']}.")
        yield handle, header


def checksum_of(handle: Any) -> str:
    """Return the seal of a file opened by :func:`open_tensors`.

    Of another content it is another.
    """
    checksum: str = json.loads(handle.metadata()["less"])["checksum"]
    return checksum


def load_tensors(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return all tensors of a file of ``kind``, and its header; raises as :func:`open_tensors`."""
    with open_tensors(path, kind) as (handle, header):
        names: list[str] = handle.keys()
        return {name: handle.get_tensor(name) for name in names}, header
