"""Rows that survive a kill: appended to a file as they come, read back on restart."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..storage.files import sha256
from .code import code_of

CHECKSUM = 17
"""Bytes before the rows of a line."""


class Journal:
    """A line for each :meth:`extend`, on disk before it returns: all its rows come back, or none.

    A line is a checksum and rows as JSON. One process writes a file at a time; another, as after a
    scheduler that was killed and started again, waits for it.

    Args:
        path: created with its folders. From a line on that was cut off or changed, all is dropped.

    Attributes:
        rows: everything written so far, by this process or before.

    Raises:
        DataError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = path.open("a+b")
            with suppress(OSError):  # a file system without locks
                fcntl.lockf(self._lines, fcntl.LOCK_EX)  # of this process, until it closes the file
            self._lines.seek(0)
            content = self._lines.read()
            self.rows, length = _whole_lines(content)
            if length < len(content):  # or the next row would continue the torn line
                said = f"{path} is damaged from byte {length} on; what followed is done again"
                print(said, file=sys.stderr)
                os.truncate(path, length)
        except OSError as error:
            raise DataError(f"cannot use {path}: {error.strerror or error}.") from error

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to the end, together."""
        new = list(rows)
        try:
            self._lines.write(_line(json.dumps(new).encode()))
            self._lines.flush()
            os.fsync(self._lines.fileno())
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror or error}.") from error
        self.rows += new


def identity(step: str, model: Path, files: Iterable[Path], **matters: Any) -> str:
    """Hash of all that a step's rows depend on: finished rows of another are never taken over.

    Args:
        step: its code counts.
        model: its weights count, by name, size and time.
        files: inputs that count by content.
        matters: whatever else does; plain data.
    """
    weights = sorted(model.glob("*.safetensors"))
    content = matters | {
        "code": code_of(step),
        "files": [sha256(path) for path in files],
        "model": [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _whole_lines(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return rows up to the first line that is not whole, and the bytes they take."""
    rows: list[dict[str, Any]] = []
    length = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        content = line[CHECKSUM:-1]
        if line != _line(content):
            break
        rows += json.loads(content)
        length += len(line)
    return rows, length


def _line(content: bytes) -> bytes:
    """Return a checksum, ``content`` and a line break."""
    return hashlib.sha256(content).hexdigest()[: CHECKSUM - 1].encode() + b" " + content + b"\n"
