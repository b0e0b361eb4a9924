"""Files between steps are whole or absent: written under a temporary name, flushed, renamed.

Safetensors are in :mod:`pipeline.tensors`. Nothing here unpickles, and nothing heavy is imported
before it is needed, because planning a run imports this.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


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
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # where nothing can be written there is nothing to remove
            partial.unlink()


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As :func:`whole`, for a folder of files; an older folder of that name is replaced."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_table(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as parquet, whole or not at all."""
    with whole(path) as partial:
        table.to_parquet(partial, index=False)


def load_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a parquet table.

    Raises:
        DataError: missing or damaged.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run the step that makes it.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again.") from error


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
