"""Check a folder of results: files are what was recorded, and all follow from the tidy table.

Nothing is measured again. Hashes of files are compared with the record of the run; tables and the
comparison with the paper are made again from the tidy table, curves and operators, in memory. Pages
that every run builds and git does not carry may be absent.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import DataError
from ..report.verify import CONFIG, CURVES, LOSSES, RECORD, other_versions, problems_of
from ..storage.files import load_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv verify``."""
    parser.add_argument("results", type=Path, help="results/<experiment>")


def run(args: argparse.Namespace) -> None:
    """Print what holds.

    Raises:
        DataError: something does not; the message names every file.
    """
    folder = args.results
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
    found = list(problems_of(folder, record, config))
    names = list(dict.fromkeys(name for name, _ in found))
    for name in names:
        print(f"{name}: {'; '.join(dict.fromkeys(what for n, what in found if n == name))}")
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
