"""Files between steps: safetensors, parquet and JSON that say what they are and are whole or absent.

Everything is written under a temporary name in the same folder, flushed, and renamed; a reader
checks the header it expects. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.errors import DataError


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write; renamed to ``path`` when the block ends well, removed when not.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot write {path}: {reason}.") from error
    finally:
        with suppress(OSError):  # where nothing can be written there is nothing to remove
            partial.unlink()


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], kind: str, **header: Any
) -> None:
    """Write tensors as safetensors whose header holds ``kind`` and ``header`` as JSON."""
    text = json.dumps({"kind": kind, **header}, sort_keys=True)
    with whole(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"less": text})


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


def save_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises:
        DataError: missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run the step that makes it.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again.") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
