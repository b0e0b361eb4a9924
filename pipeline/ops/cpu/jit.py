"""How the hot loops are compiled, and where the compiled code is kept.

Numba compiles a loop when it is first called, for tens of seconds, and keeps the machine code on
disk. It names that code by the path of its source, takes it for current as long as that one file
is unchanged, and does not expect two processes to keep code of one loop at the same moment. Here
copies of the package may share one folder (NUMBA_CACHE_DIR), helpers in other files change, and
many jobs start at once; so the code is named by the contents of all the sources, and written by one
process at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import caching


def cache_folder(sources: Path, wanted: str = "") -> Path:
    """Return where compiled loops are kept: a folder named by a hash of the code in ``sources``.

    Args:
        wanted: a folder the user chose (NUMBA_CACHE_DIR); by default the sources' own
            ``__pycache__``, or a folder in the user's home where that cannot be written.
    """
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(path.read_bytes())
    beside = sources / "__pycache__"
    if not wanted and not os.access(beside if beside.exists() else sources, os.W_OK):
        beside = Path.home() / ".cache" / "less-kv"
    return (Path(wanted) if wanted else beside) / f"numba-{digest.hexdigest()[:12]}"


FOLDER = cache_folder(Path(__file__).parent, numba.config.CACHE_DIR)  # type: ignore[attr-defined]


class _Folder(caching.InTreeCacheLocator):
    """Every loop in one folder, wherever its source lies."""

    def __init__(self, function: Any, source: str) -> None:
        super().__init__(function, source)
        self._cache_path = str(FOLDER)


class _Place(caching.CompileResultCacheImpl):
    """Numba's own places come after ours: a folder that cannot be written is no error."""

    _locator_classes = [_Folder, *caching.CompileResultCacheImpl._locator_classes]  # noqa: RUF012


class _Cache(caching.FunctionCache):
    """Machine code is numbered and indexed by one process at a time.

    Numba takes the next free number, writes the index, then the code. Two processes that keep two
    signatures of a loop at the same moment could take one number for both, and one signature would
    be answered with the code of the other.
    """

    _impl_class = _Place

    def _save_overload(self, signature: Any, data: Any) -> None:
        self._impl.locator.ensure_cache_path()
        with Path(self.cache_path, "lock").open("w") as lock:
            with suppress(OSError):  # a file system without locks is as good as numba finds it
                fcntl.flock(lock, fcntl.LOCK_EX)
            super()._save_overload(signature, data)


def _compiled(function: Any, **options: Any) -> Any:
    dispatcher = numba.njit(function, nogil=True, error_model="numpy", **options)
    dispatcher._cache = _Cache(function)
    return dispatcher


def jit(function: Any) -> Any:
    """Compile ``function`` with numba, to be kept on disk.

    Division follows IEEE: a check for zero would keep loops from vectorising.
    """
    return _compiled(function)


def parallel(function: Any) -> Any:
    """Do as :func:`jit`; its ``prange`` loops are shared between threads."""
    return _compiled(function, parallel=True)
