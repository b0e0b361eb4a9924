"""Check a folder of results: files are what was recorded, and all follow from the tidy table.

Nothing is measured again. Hashes of files are compared with the record of the run; tables and the
comparison with the paper are made again from the tidy table, curves and operators, in memory. Pages
that every run builds and git does not carry may be absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError, LessError
from ..experiment.config import complete, config_hash
from ..runtime.machine import installed
from ..storage.files import load_json, load_table, sha256
from . import comparison as compare
from . import tables
from .rows import load_curves, load_tidy

RECORD, CONFIG = "provenance.json", "config.json"
TIDY, CURVES, OPERATORS = "results.parquet", "curves.parquet", "operators.parquet"
LOSSES = "training"
"""The table of the loss curves."""
LATER = ("provenance.json", "provenance.html", "report.html", "config.json")
"""Files that are written with the record or after it; it cannot hold their hashes."""
BUILT = ("*.html", "examples.md")
"""Files that a checkout may lack: every run builds them."""

Problem = tuple[str, str]
"""The name of a file, and what is wrong with it."""


def file_problems(folder: Path, recorded: Mapping[str, str]) -> Iterator[Problem]:
    """Yield files that changed, are missing, or were never recorded."""
    for name, digest in recorded.items():
        path = folder / name
        if path.is_file():
            if sha256(path) != digest:
                yield name, "changed since it was recorded"
        elif not built(name):
            yield name, "missing"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in recorded and name not in LATER:
            yield name, "not recorded"


def built(name: str) -> bool:
    """Tell whether a file may be absent until a run builds it."""
    return any(Path(name).match(pattern) for pattern in BUILT)


def input_problems(root: Path, recorded: Mapping[str, str]) -> Iterator[Problem]:
    """Yield inputs that are here, but are not those that the results came from."""
    for name, digest in recorded.items():
        path = root / name
        if path.is_file() and sha256(path) != digest:
            yield name, "not the input that the results came from"


def record_problems(
    record: Mapping[str, Any], config: Any, tidy: pd.DataFrame
) -> Iterator[Problem]:
    """Yield where configuration, its hash, seed and tidy table tell of different runs."""
    if config != record["config"]:
        yield CONFIG, f"not the configuration in {RECORD}"
    if config_hash(record["config"]) != record["config_hash"]:
        yield RECORD, "its configuration does not have its config_hash"
    expected = {
        "experiment": record["config"]["experiment"],
        "config": record["config_hash"],
        "seed": record["seed"],
    }
    for column, value in expected.items():
        if set(tidy[column]) != {value}:
            yield TIDY, f"its column {column} is not {value}, as in {RECORD}"


def followed(
    tidy: pd.DataFrame,
    curves: pd.DataFrame | None,
    operators: pd.DataFrame,
    config: Mapping[str, Any],
) -> dict[str, str]:
    """Return the text of every file that follows from tidy table, curves and operators, by name.

    Records of earlier versions have no loss curves; the table that shows them is then left out.
    """
    texts = {"results.csv": tidy.to_csv(index=False)}
    measured = tables.Measured(
        tidy, load_curves([]) if curves is None else curves, config["models"], operators
    )
    for name in tables.TABLES:
        if name == LOSSES and curves is None:
            continue
        for suffix, text in tables.forms(tables.view(name, measured), name).items():
            texts[f"tables/{name}.{suffix}"] = text
    for suffix, text in compare.forms(tidy, config).items():
        texts[f"paper_vs_ours.{suffix}"] = text
    return texts


def text_problems(folder: Path, texts: Mapping[str, str]) -> Iterator[Problem]:
    """Yield files that do not say what follows from the tidy table."""
    for name, text in texts.items():
        path = folder / name
        if path.is_file():
            if path.read_bytes() != text.encode():
                yield name, f"does not follow from {TIDY}"
        elif not built(name):
            yield name, "missing"


def other_versions(record: Mapping[str, Any]) -> str:
    """Return packages that are not here in the recorded version, as a list; empty where all are."""
    here = installed()
    return ", ".join(
        f"{name} {here[name]} for {version}"
        for name, version in record["packages"].items()
        if name in here and here[name] != version
    )


def problems_of(folder: Path, record: Mapping[str, Any], config: Any) -> Iterator[Problem]:
    """Yield all that is wrong with a folder of results."""
    yield from file_problems(folder, record["results"])
    yield from input_problems(folder.absolute().parent.parent, record["inputs"])
    try:
        # Of versions that knew no seals too: their hashes are in the record.
        tidy = load_tidy(folder / TIDY, sealed=False)
        curves, operators = (
            load_table(folder / name, sealed=False) if name in record["results"] else None
            for name in (CURVES, OPERATORS)
        )
        operators = pd.DataFrame() if operators is None else operators
        yield from record_problems(record, config, tidy)
        yield from text_problems(folder, followed(tidy, curves, operators, complete(config)))
    except (LessError, LookupError, TypeError, ValueError) as error:
        yield TIDY, f"tables cannot be made from it ({error})"


def verify(folder: Path) -> None:
    """Print what holds of a folder of results.

    Raises:
        DataError: something does not; the message names every file.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of results.")
    record, config = load_json(folder / RECORD), load_json(folder / CONFIG)
    if not {"results", "inputs", "packages", "config", "config_hash", "seed", "code"} <= set(
        record
    ):
        raise DataError(f"{folder / RECORD} is not the record of a run.")
    if not any(name.startswith("tables/") for name in record["results"]):
        raise DataError(
            f"{folder / RECORD} is of an earlier version, which recorded no tables and figures. "
            f"Where its scratch folder still is, make it anew: snakemake --configfile "
            f"{folder / CONFIG} {folder / RECORD}"
        )
    problems = list(problems_of(folder, record, config))
    names = list(dict.fromkeys(name for name, _ in problems))
    for name in names:
        print(f"{name}: {'; '.join(dict.fromkeys(what for n, what in problems if n == name))}")
    here = sum((folder / name).is_file() for name in record["results"])
    there = sum((folder.absolute().parent.parent / name).is_file() for name in record["inputs"])
    print(
        f"{folder}: {len(record['results'])} files recorded, {here} here; "
        f"{len(record['inputs'])} inputs recorded, {there} here; commit "
        f"{record['code']['commit']}{' with changes' * bool(record['code']['changed'])}, "
        f"configuration {record['config_hash']}"
    )
    if CURVES not in record["results"]:
        print(f"tables/{LOSSES}: only its hash was checked, its loss curves are not here.")
    if not names:
        print("Every file is as recorded; tables and comparison follow from the tidy table.")
        return
    if changed := other_versions(record):
        print(f"Versions that may word tables otherwise: {changed}.")
    raise DataError(f"{len(names)} files do not hold: {', '.join(names)}.")
