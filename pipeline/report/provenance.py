"""Record what a run was made of: code, configuration, seeds, versions, hardware, input hashes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from ..storage.files import sha256
from .html import Section, as_html

LOCK = Path(__file__).parents[2] / "envs" / "requirements.lock"
"""Every version that the environment is built from."""


def hashes(paths: Sequence[Path], names: Sequence[Path] | None = None) -> dict[str, str]:
    """SHA-256 of files, and of every file in folders.

    Args:
        names: what to call the files and folders, where copies of them are hashed.

    Raises:
        DataError: one cannot be read.
    """
    files = {
        name / file.relative_to(path): file
        for path, name in zip(paths, names or paths, strict=True)
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if not file.is_dir() and not file.name.startswith(".")
    }
    try:
        return {str(name): sha256(file) for name, file in files.items()}
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}.") from error


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(value, dict) or not value:
        return {place: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{place}.{key}" if place else key)
    return found


def page(record: dict[str, Any]) -> str:
    """The record as a page of tables."""
    sections = [
        Section(name, pd.DataFrame(flat(part).items(), columns=["key", "value"], dtype=object))
        for name, part in record.items()
        if isinstance(part, dict) and part
    ]
    rest = {name: part for name, part in record.items() if not isinstance(part, dict)}
    return as_html("Provenance", sections, [f"{name}: {part}" for name, part in rest.items()])
