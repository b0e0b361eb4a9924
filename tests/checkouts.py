"""Copies of the repository to run the workflow in, and what is asked of such runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.overhead import PARTS

ROOT = Path(__file__).parent.parent
SMOKE = "experiments/smoke.yaml"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
}


def checkout(folder, source=ROOT):
    """The files of a checkout that a run reads; compiled loops lie elsewhere (variables.py)."""
    for part in PARTS:
        if (source / part).is_dir():
            loops = shutil.ignore_patterns("numba-*")
            shutil.copytree(source / part, folder / part, ignore=loops)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, folder / part)
    return folder


def command(*words, config=SMOKE):
    return ["snakemake", "--cores", "2", "--configfile", str(config), *words]


def run(folder, *words, config=SMOKE):
    return subprocess.run(
        command(*words, config=config), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )


def finish(folder):
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def planned(folder, config=SMOKE):
    """Jobs by rule that a dry run lists, without the target."""
    done = run(folder, "--dry-run", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout + done.stderr
    if "Nothing to be done" in text:
        return {}
    table = text.split("Job stats:")[1].split("\n\n")[0]
    counts = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    assert counts.pop("total") == sum(counts.values())
    assert counts.pop("all") == 1
    return counts


def less(folder, *words):
    """A command of the package, in a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip


def assert_same_results(mine, theirs):
    compared = 0
    for path in (mine / "results" / "smoke").rglob("*"):
        if path.is_file() and path.name != "report.html":  # the report tells how long jobs took
            assert path.read_bytes() == (theirs / path.relative_to(mine)).read_bytes(), path.name
            compared += 1
    assert compared > 20
