"""Record what a run was made of: code, configuration, seeds, versions, hardware, input hashes."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from ..runtime.code import commit
from ..runtime.machine import hardware, installed
from ..storage.files import save_json, sha256, whole
from .html import Section, as_html

LOCK = Path(__file__).parents[2] / "envs" / "requirements.lock"
"""Every version that the environment is built from."""


def hashes(paths: Sequence[Path], names: Sequence[Path] | None = None) -> dict[str, str]:
    """Return the SHA-256 of files, and of every file in folders.

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
    """Return nested mappings as one, keys joined by dots."""
    if not isinstance(value, dict) or not value:
        return {place: value}
    parts: dict[str, Any] = {}
    for key, item in value.items():
        parts |= flat(item, f"{place}.{key}" if place else key)
    return parts


def page(record: dict[str, Any]) -> str:
    """Return the record as a page of tables."""
    sections = [
        Section(name, pd.DataFrame(flat(part).items(), columns=["key", "value"], dtype=object))
        for name, part in record.items()
        if isinstance(part, dict) and part
    ]
    rest = {name: part for name, part in record.items() if not isinstance(part, dict)}
    return as_html("Provenance", sections, [f"{name}: {part}" for name, part in rest.items()])


def record(
    config: Mapping[str, Any],
    digest: str,
    inputs: Sequence[Path],
    names: Sequence[Path] | None,
    results: Sequence[Path],
    out: Path,
) -> dict[str, Any]:
    """Return what a run was made of, as plain data.

    Args:
        config: completed; ``digest``: its hash.
        inputs, names: as of :func:`hashes`.
        results: files, in the record by their place beside ``out``.
    """
    made = {Path(path).relative_to(out.parent): hashed for path, hashed in hashes(results).items()}
    return {
        "code": commit(),
        "config": config,
        "config_hash": digest,
        "seed": config["seed"],
        "python": platform.python_version(),
        "packages": installed(),
        "environment": hashes([LOCK] if LOCK.exists() else []).get(str(LOCK)),
        "hardware": hardware(),
        "inputs": hashes(inputs, names),
        "results": {path.as_posix(): hashed for path, hashed in made.items()},
    }


def write(record: dict[str, Any], out: Path) -> None:
    """Write the record as JSON, and as a page beside it."""
    save_json(out, record)
    with whole(out.with_suffix(".html")) as partial:
        partial.write_text(page(record), encoding="utf-8")
