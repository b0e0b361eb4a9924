"""What is particular to the hub: which of its errors last, and that its cache may be damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ..errors import DataError
from ..storage.files import sha256

TEMPORARY = (408, 429)
"""Refusals that are not final."""


def lasting(error: BaseException | None) -> bool:
    """Tell whether an error of the hub, or one behind it, would be the same next time."""
    if isinstance(error, OfflineModeIsEnabled | HFValidationError):
        return True
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        return 400 <= status < 500 and status not in TEMPORARY
    return error is not None and lasting(error.__cause__ or error.__context__)


def first_line(error: Exception) -> str:
    """Return what an error says, for the middle of a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def discard_damaged(snapshot: Path) -> None:
    """Delete files of the hub's cache that do not have the hash that they are named by.

    The library compares sizes alone.

    Args:
        snapshot: a folder of links to such files; where there are no links nothing can be seen.

    Raises:
        DataError: there were some.
    """
    damaged = []
    for link in snapshot.iterdir():
        content = link.resolve()
        digest = DIGESTS.get(len(content.name))
        if link.is_symlink() and content.is_file() and digest and digest(content) != content.name:
            content.unlink()
            link.unlink()
            damaged.append(link.name)
    if damaged:
        raise DataError(
            f"{', '.join(sorted(damaged))} in the hub's cache had another hash than the hub says, "
            "and was deleted"
        )


def _git_sha1(path: Path) -> str:
    """Return the name that git gives to a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


DIGESTS = {64: sha256, 40: _git_sha1}
"""Hashes by their length: of large files, and of those that git holds itself."""
