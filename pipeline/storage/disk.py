"""Room on a disk, looked at before a step fills it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import DataError

GIB = 2**30
MARGIN = 0.05
"""Share of a disk that stays free, for logs and results still to come; at most 5 GiB."""


def require_space(folder: Path, need: int, remedy: str) -> None:
    """See that ``need`` bytes fit on the disk of ``folder``, and leave it some room.

    Args:
        remedy: what to do beside making room, for the message.

    Raises:
        DataError: they do not.
    """
    folder = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    disk = shutil.disk_usage(folder)
    margin = min(int(disk.total * MARGIN), 5 * GIB)
    if need + margin > disk.free:
        raise DataError(
            f"{need / GIB:.4g} GiB are needed in {folder}, where {disk.free / GIB:.4g} GiB are "
            f"free and {margin / GIB:.2g} GiB are to stay so: make room, or {remedy}."
        )
