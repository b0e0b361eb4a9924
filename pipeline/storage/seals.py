"""Seals: how a reader knows that a file between steps is, byte for byte, what was written.

A seal is the SHA-256 of all bytes of a file, those of the seal taken as zeros. It stands in the
part that describes the rest: the header of safetensors, the footer of parquet, a key of JSON. So it
travels with the file, a change of any byte is seen when the file is read, and every reader of the
format still reads it. What is damaged is marked, and the next run makes it again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import DamagedError, DataError

SEAL = "less-sha256:"
UNSEALED = SEAL + 64 * "0"
"""What a file holds where :func:`seal` writes its seal."""
LONGEST_HEADER = 100_000_000
"""Bytes that a header can have; the library that reads safetensors has the same bound."""


def _find_seal(file: BinaryIO) -> tuple[int, bytes]:
    """Return where a file's seal is, and what it says.

    Raises:
        ValueError: it has none.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if start.startswith(b"PAR1"):
        file.seek(max(size - 8, 0))
        length = int.from_bytes(file.read(4), "little")
        first = file.seek(max(size - 8 - min(length, LONGEST_HEADER), 0))
        header = file.read()
    elif start.startswith(b"{"):
        first = file.seek(0)
        header = file.read()
    else:
        first = len(start)
        header = file.read(min(int.from_bytes(start, "little"), LONGEST_HEADER, size))
    seals = list(re.finditer(rb"%s([0-9a-f]{64})" % SEAL.encode(), header))
    if len(seals) != 1:
        raise ValueError("it was cut off, or is no file that this project wrote")
    return first + seals[0].start(1), seals[0][1]


def _digest(file: BinaryIO, place: int) -> bytes:
    """Return SHA-256 of a file whose seal is at ``place``, in hex."""
    file.seek(0)
    begun = hashlib.sha256(file.read(place) + 64 * b"0")
    file.seek(place + 64)
    return hashlib.file_digest(file, lambda: begun).hexdigest().encode()  # type: ignore[arg-type]


def seal(path: Path) -> None:
    """Write a file's seal in the place of :data:`UNSEALED`; nothing may change after.

    Raises:
        ValueError: it has no such place, or several.
    """
    with path.open("r+b") as file:
        place, _ = _find_seal(file)
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest)


def check(path: str | os.PathLike[str], folder: Path | None = None) -> None:
    """See that a file is, byte for byte, what was sealed. It is read once, at about 2 GB/s.

    Args:
        folder: that is made again if the file is damaged, where it is not the file alone.

    Raises:
        DataError: missing, or cannot be read.
        DamagedError: empty, cut off, changed, or without a seal.
    """
    try:
        with Path(path).open("rb") as file:
            place, sealed = _find_seal(file)
            if _digest(file, place) != sealed:
                raise DamagedError(path, "its checksum does not match", folder)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise DamagedError(path, error, folder) from None


def remove(path: Path) -> None:
    """Delete a file or a folder, if it can be."""
    with suppress(OSError):  # where nothing can be written there is nothing to remove
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def mark_of(path: Path) -> Path:
    """Return where an empty file marks ``path`` as damaged."""
    return path.with_name(f"{path.name}.damaged")


def discard_marked(root: Path) -> None:
    """Delete all that is marked as damaged under ``root``, and its marks, so that it is made again.

    Between runs, not when damage is found: a job that is tried again needs its input in its place.
    """
    for mark in list(root.rglob("*.damaged")):
        remove(mark.with_suffix(""))
        remove(mark)  # last, so that a kill in between leaves the mark of what is gone


def missing(path: str | os.PathLike[str]) -> DataError:
    """Return the error of a file that is not there."""
    return DataError(f"{path} does not exist; run the step that makes it.")
