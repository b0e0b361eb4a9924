"""What the workflow spends outside its jobs: a thousand jobs that do nothing, and dry runs.

    python -m benchmarks.overhead [--layers 106] [--cores 2] [--dry-run experiments/llama2_7b.yaml]

The real Snakefile, rules and profile plan and start the jobs of a grid of one model, a job a layer;
in place of `python`, jobs find a stub on PATH that writes empty outputs. Everything happens in a
temporary folder. Processor time is Snakemake's and the stubs' together, and does not depend on what
else the machine does. Exits with 1 where a job costs 0.25 s or more outside, or a dry run a minute.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml
from tabulate import tabulate

ROOT = Path(__file__).parent.parent
PARTS = (
    "Snakefile",
    "config.yaml",
    "experiments",
    "pipeline",
    "profiles",
    "tests/data",
    "workflow",
)
PAPER = ["experiments/llama2_7b.yaml", "experiments/llama2_13b.yaml", "experiments/falcon_7b.yaml"]
MOST_S_A_JOB, MOST_S_A_PLAN = 0.25, 60.0
STUB = """#!/bin/sh
# Stands in for `python -m pipeline STEP ...`: makes the outputs that options name, empty.
for word do
  case $word in convert|dump|train) step=$word ;; esac
  case $last in
    --out) case $step in convert|dump) mkdir -p "$word" ;; *) : > "$word" ;; esac ;;
    --curves) [ "$step" = train ] && : > "$word" ;;
    --curves-out) : > "$word" ;;
  esac
  last=$word
done
exit 0
"""


def checkout(folder: Path) -> None:
    """Copy what a run reads."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def experiment(layers: int) -> dict[str, object]:
    """A grid of 3 policies and 3 train sparsities: 9 training jobs for each layer."""
    config = yaml.safe_load((ROOT / "experiments" / "smoke.yaml").read_text())
    config["experiment"] = "overhead"
    config["models"]["tiny"] |= {"num_layers": layers, "context": 256}
    config["grid"] |= {
        "policies": ["h2o", "lambda", "tova"],
        "train_sparsities": [0.1, 0.2, 0.3],
        "test_sparsities": [0.1, 0.2, 0.3],
    }
    del config["tasks"]["notes"], config["tasks"]["questions"]
    return config


def snakemake(folder: Path, *words: str, path: str) -> tuple[float, str]:
    """(seconds, output) of a run that must succeed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [str(Path(sys.executable).parent / "snakemake"), *words]
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment | {"PATH": path}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return seconds, done.stdout + done.stderr


def processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure; 0 if both bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=106, help="nine training jobs each")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--dry-run", nargs="*", default=PAPER, help="experiments to plan")
    args = parser.parse_args()
    path = os.environ["PATH"]
    with tempfile.TemporaryDirectory(prefix="less-overhead-") as name:
        folder = Path(name)
        checkout(folder)
        plans = []
        for config in args.dry_run:
            seconds, said = snakemake(folder, "-n", "--configfile", config, path=path)
            jobs = next(int(x.split()[1]) for x in said.splitlines() if x.startswith("total "))
            plans.append([config, jobs, seconds])
        stubs = folder / "stubs"
        stubs.mkdir()
        (stubs / "python").write_text(STUB)
        (stubs / "python").chmod(0o755)
        (folder / "overhead.yaml").write_text(yaml.safe_dump(experiment(args.layers)))
        words = ["--cores", str(args.cores), "--configfile", "overhead.yaml"]
        target = "scratch/overhead/tidy.parquet"
        before = processor_seconds()
        wall, _ = snakemake(folder, target, *words, path=f"{stubs}{os.pathsep}{path}")
        spent = processor_seconds() - before
        records = [pd.read_csv(x, sep="\t") for x in folder.rglob("benchmarks/**/*.tsv")]
    jobs, inside = len(records), float(sum(record["s"].sum() for record in records))
    outside = (wall - inside / args.cores) / jobs
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n")
    print(tabulate(plans, ["dry run", "jobs", "s"], floatfmt=".1f"))
    rows = [[jobs, wall, inside, wall / jobs, outside, spent / jobs]]
    heads = ["jobs", "wall, s", "in jobs, s", "wall, s a job", "outside, s a job"]
    heads += ["processor, s a job"]
    print("\n" + tabulate(rows, heads, floatfmt=(".0f", ".1f", ".1f", ".3f", ".3f", ".3f")))
    return int(outside >= MOST_S_A_JOB or any(s >= MOST_S_A_PLAN for *_, s in plans))


if __name__ == "__main__":
    sys.exit(main())
