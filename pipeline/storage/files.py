"""Files between steps are whole or absent: written under a temporary name, sealed, renamed.

Safetensors are in :mod:`pipeline.storage.tensors`. Nothing here unpickles, and nothing heavy is
imported before it is needed, because planning a run imports this.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DamagedError, DataError
from .seals import UNSEALED, check, mark_of, missing, remove, seal

if TYPE_CHECKING:
    import pandas as pd


CHECKSUMS = "checksums.json"
"""Of a folder whose files are not of our making: their hashes."""


def _partial(path: Path, process: int | str) -> Path:
    """Return where a process of this machine writes what becomes ``path``."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{process}.partial")


def _clear(path: Path) -> None:
    """Remove what killed writers left of ``path``, and the mark of its damage."""
    remove(mark_of(path))
    left = re.compile(re.escape(_partial(path, "PID").name).replace("PID", r"(\d+)"))
    for old in path.parent.iterdir() if path.parent.is_dir() else ():
        writer = left.fullmatch(old.name)
        if writer and not _alive(int(writer[1])):
            remove(old)


def _alive(process: int) -> bool:
    """Tell whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write; it becomes ``path`` if the block ends well, or goes.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = _partial(path, os.getpid())
    try:
        _clear(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        remove(partial)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Do as :func:`whole`, for a folder of files; an older folder of that name is replaced."""
    path = Path(path)
    partial = _partial(path, os.getpid())
    try:
        _clear(path)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


KIND = b"kind"
"""Key of a parquet file's metadata: what its rows measure."""


def save_table(path: str | os.PathLike[str], table: pd.DataFrame, kind: str | None = None) -> None:
    """Write a table as sealed parquet, whole or not at all.

    Args:
        kind: what its rows measure, for :func:`load_measured`; None where nothing asks for it.
    """
    import pyarrow
    from pyarrow import parquet

    content = pyarrow.Table.from_pandas(table, preserve_index=False)
    header = (content.schema.metadata or {}) | {b"checksum": UNSEALED.encode()}
    header |= {} if kind is None else {KIND: kind.encode()}
    with whole(path) as partial:
        parquet.write_table(content.replace_schema_metadata(header), partial)
        seal(partial)


def load_table(path: str | os.PathLike[str], sealed: bool = True) -> pd.DataFrame:
    """Read a parquet table that :func:`save_table` wrote; raises as :func:`check`.

    Args:
        sealed: False where the hash of the file is checked otherwise, so that tables of versions
            that knew no seals can be read.
    """
    import pandas as pd

    if sealed:
        check(path)
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError) as error:
        raise DamagedError(path, error) from error


def load_measured(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, str]:
    """Read a table of measurements and what they are: (rows, kind).

    Raises:
        DataError: missing, or it does not say its kind.
        DamagedError: as :func:`check`.
    """
    from pyarrow import parquet

    table = load_table(path)
    kind = (parquet.read_schema(path).metadata or {}).get(KIND)
    if kind is None:
        raise DataError(
            f"{path} does not say what it measures: it was written by an older version, or by no"
            " measuring step. Delete it and run again."
        )
    return table, kind.decode()


def save_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(_json(value), encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def load_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises:
        DataError: missing.
        DamagedError: not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(path, error) from error


def save_sealed(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Do as :func:`save_json`, for what steps read and people do not edit."""
    with whole(path) as partial:
        partial.write_text(_json(value | {"checksum": UNSEALED}), encoding="utf-8")
        seal(partial)


def load_sealed(path: str | os.PathLike[str], folder: Path | None = None) -> dict[str, Any]:
    """Return what :func:`save_sealed` wrote; arguments and errors are those of :func:`check`."""
    check(path, folder)
    value: dict[str, Any] = load_json(path)
    del value["checksum"]
    return value


def save_checksums(folder: Path) -> None:
    """Write :data:`CHECKSUMS` of a folder whose files are not of our making."""
    hashes = {path.name: sha256(path) for path in folder.iterdir() if path.name != CHECKSUMS}
    save_sealed(folder / CHECKSUMS, {"files": hashes})


def check_folder(folder: Path, ignored: Iterable[str] = ()) -> None:
    """See that files are what :func:`save_checksums` found, where it was called on their folder.

    Args:
        ignored: suffixes of files that are not looked at.

    Raises:
        DamagedError: one is missing or changed.
    """
    if not (folder / CHECKSUMS).exists():
        return
    for name, expected in load_sealed(folder / CHECKSUMS, folder)["files"].items():
        path = folder / name
        if path.suffix not in ignored and (not path.is_file() or sha256(path) != expected):
            raise DamagedError(path, "it is missing or its checksum does not match", folder)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return hex digest of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
