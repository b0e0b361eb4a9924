"""How the wall time of a grid falls with the number of GPUs: its real jobs, a simulated cluster.

    python -m benchmarks.scaling [--config experiments/smollm2.yaml] [--sparsities 11]
        [--set dump.layers_per_job=3] [--gpus 1 8 64 256] [--times train=53 harness=400]
        [--overhead 0.045]

Snakemake gives the jobs of the configuration and what waits for what, with each layer a training
job and as many train sparsities a policy as asked for. A list scheduler, which is not Snakemake's,
starts them: jobs take the recorded times below and start once their inputs are there and a GPU is
free; jobs without a GPU need inputs only. One job after another is started, each after the seconds
that Snakemake spends on a job. Ideal is the larger of work / GPUs and the longest chain of jobs,
without that: no schedule beats either.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from benchmarks.overhead import checkout, snakemake

TIMES = {
    "fetch": 1.4, "convert": 16.6, "sample": 5.4, "dump": 238.5, "train": 53.0, "collect": 1.9,
    "prompts": 6.3, "summaries": 97.5, "harness": 214.3, "evaluate": 214.3, "fidelity": 51.3,
    "maps": 24.5, "latency": 120.7, "tabulate": 1.0, "tables": 1.2, "plot": 10.4, "compare": 0.8,
    "examples": 0.6, "provenance": 2.1, "page": 2.0,
}  # fmt: skip
"""Mean seconds of a job in an earlier run of `experiments/smollm2.yaml` (by Snakemake's files);
training is a tenth of a job of ten layers, evaluate, which it has none of, as harness, and latency
the mean of `experiments/latency_cpu.yaml`."""
OVERHEAD = 0.045
"""Seconds that Snakemake spends on a job, of :mod:`benchmarks.overhead`."""

GPU = {
    "dump", "train", "evaluate", "harness", "summaries", "fidelity", "maps", "latency",
}  # fmt: skip
"""Rules that take a GPU each with `device: cuda`."""


@dataclass(frozen=True)
class Graph:
    """Jobs of a run: the rule of each, what each waits for, and what waits for each."""

    rule: dict[int, str]
    before: dict[int, set[int]]
    after: dict[int, set[int]]


def graph_of(config: dict[str, Any]) -> Graph:
    """The jobs that Snakemake plans for a configuration in a fresh checkout."""
    with tempfile.TemporaryDirectory(prefix="less-scaling-") as name:
        folder = Path(name)
        checkout(folder)
        (folder / "config.json").write_text(json.dumps(config))
        _, said = snakemake(
            folder, "--configfile", "config.json", "--d3dag", path=os.environ["PATH"]
        )
    found = next(json.loads(line) for line in said.splitlines() if line.startswith('{"nodes"'))
    graph = Graph({x["id"]: x["value"]["rule"] for x in found["nodes"]}, {}, {})
    for job in graph.rule:
        graph.before[job], graph.after[job] = set(), set()
    for edge in found["edges"]:
        graph.before[edge["v"]].add(edge["u"])
        graph.after[edge["u"]].add(edge["v"])
    return graph


def chains(graph: Graph, times: Mapping[str, float]) -> dict[int, float]:
    """Seconds of the longest chain of jobs that begins with each."""
    found: dict[int, float] = {}
    stack = list(graph.rule)
    while stack:
        missing = [job for job in graph.after[stack[-1]] if job not in found]
        if missing:
            stack += missing
            continue
        job = stack.pop()
        later = max((found[x] for x in graph.after[job]), default=0.0)
        found[job] = times.get(graph.rule[job], 0.0) + later
    return found


def wall_time(
    graph: Graph, times: Mapping[str, float], gpus: int, urgency: Mapping[int, float],
    overhead: float = 0.0,
) -> float:  # fmt: skip
    """Seconds until all jobs are done; of those that are ready, the most urgent start first.

    Args:
        urgency: of each job. overhead: seconds a job of a scheduler that does one thing at a time.
    """
    left = {job: len(before) for job, before in graph.before.items()}
    ready = [(-urgency[job], job) for job, count in left.items() if not count]
    running: list[tuple[float, int]] = []
    now, busy, free = 0.0, 0.0, gpus  # busy: until when the scheduler is
    while ready or running:
        held = []
        for key, job in sorted(ready):
            if graph.rule[job] in GPU and not free:
                held.append((key, job))
                continue
            free -= graph.rule[job] in GPU
            busy = max(now, busy) + overhead
            heapq.heappush(running, (busy + times.get(graph.rule[job], 0.0), job))
        ready = held
        now, job = heapq.heappop(running)
        free += graph.rule[job] in GPU
        for later in graph.after[job]:
            left[later] -= 1
            if not left[later]:
                ready.append((-urgency[later], later))
    return now


def put(config: dict[str, Any], place: str, value: Any) -> None:
    """Set a value at a place whose keys are joined by dots."""
    *path, last = place.split(".")
    for key in path:
        config = config.setdefault(key, {})
    config[last] = value


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("experiments/smollm2.yaml"))
    parser.add_argument(
        "--sparsities", type=int, default=11, help="train sparsities a policy; 0: as configured"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY.KEY=JSON")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--times", nargs="*", default=[], metavar="RULE=SECONDS")
    parser.add_argument("--overhead", type=float, default=OVERHEAD, help="seconds a job")
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text()) | {"device": "cuda"}
    config["train"]["layers_per_job"] = 1
    if args.sparsities:
        sparsities = [round(0.02 + 0.01 * i, 2) for i in range(args.sparsities)]
        config["grid"]["train_sparsities"] = sparsities
    for change in args.set:
        place, value = change.split("=", 1)
        put(config, place, json.loads(value))
    times = TIMES | {k: float(v) for k, v in (pair.split("=") for pair in args.times)}
    graph = graph_of(config)
    chain = chains(graph, times)
    longest = max(chain.values())
    work = sum(times.get(rule, 0.0) for rule in graph.rule.values() if rule in GPU)
    trained = sum(rule == "train" for rule in graph.rule.values())
    print(f"{len(graph.rule)} jobs, {trained} of them a layer each; {work / 3600:.1f} GPU hours; ")
    print(f"longest chain {longest:.0f} s\n")
    shuffled = {job: random.Random(job).random() for job in graph.rule}
    rows = []
    for gpus in args.gpus:
        ideal = max(work / gpus, longest)
        plain, urgent = (
            wall_time(graph, times, gpus, order, args.overhead) for order in (shuffled, chain)
        )
        rows.append([gpus, ideal, plain, urgent, ideal / plain, work / gpus / plain])
    heads = ["GPUs", "ideal, s", "in any order, s", "longest chain first, s", "ideal / any", "busy"]
    print(tabulate(rows, heads, floatfmt=("d", ".0f", ".0f", ".0f", ".2f", ".2f")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
