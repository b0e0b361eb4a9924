"""What a run will take, from its configuration alone: disk, GPU memory and GPU hours.

Planning a run imports this, so nothing heavy is imported. Hours count operations, and what decode
steps read from memory, at assumed speeds; they are there to tell an afternoon from a month. The
host's own time is not in them, nor are the few windows of fidelity and maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..storage.disk import GIB
from . import grid, latency
from .kinds import KINDS
from .speeds import (
    BACKWARD,
    BYTES_PER_SECOND,
    FORWARD,
    HALF,
    OPERATIONS_PER_SECOND,
    cache_bytes,
    continuing,
    reading,
)

Config = Mapping[str, Any]

CARD = 80 * GIB
"""Assumed of its memory, too: what takes more in the latency study ends soon."""


def feature_bytes(config: Config, model: str) -> int:
    """Return the disk that the features of one layer take: q, k, v of every token, in halves."""
    shape, train = config["models"][model]["shape"], config["train"]
    numbers = (shape["num_heads"] + 2 * shape["num_kv_heads"]) * shape["head_dim"]
    return int(train["sequences"] * config["models"][model]["context"] * numbers * HALF)


def bundle_bytes(config: Config, model: str) -> int:
    """Return the disk that the layers of one dump job take."""
    layers: int = min(config["dump"]["layers_per_job"], config["models"][model]["num_layers"])
    return layers * feature_bytes(config, model)


def bundles_at_once(config: Config) -> int | None:
    """Return how many bundles of layers fit into `dump.disk_gib`, None without a bound."""
    bound = config["dump"]["disk_gib"]
    if bound is None:
        return None
    largest = max(bundle_bytes(config, model) for model in config["models"])
    return int(bound * GIB // largest)


def bundles_of_a_training(config: Config) -> int:
    """Return how many bundles of layers one job of training reads, at most."""
    most = 0
    for model in config["models"].values():
        dumps, trains = (
            grid.layer_ranges(model["num_layers"], config[x]["layers_per_job"])
            for x in ("dump", "train")
        )
        most = max(most, *(len(grid.overlapping(dumps, *layers)) for layers in trains))
    return most


def peak_disk(config: Config) -> int:
    """Return the bytes of features on disk at the fullest moment."""
    models, at_once = config["models"], bundles_at_once(config)
    everything: int = sum(feature_bytes(config, m) * x["num_layers"] for m, x in models.items())
    if at_once is None:
        return everything
    bounded: int = at_once * max(bundle_bytes(config, model) for model in models)
    return min(everything, bounded)


def job_bytes(config: Config, model: str, tokens: int, cached: int) -> float:
    """Return the GPU memory of a job: weights, what a layer makes of ``tokens``, and a cache."""
    own, train = config["models"][model], config["train"]
    token = feature_bytes(config, model) / (train["sequences"] * own["context"])
    weights = HALF * own["shape"]["parameters"]
    return float(weights + 2 * token * tokens + cache_bytes(config, model, cached))


def gpu_bytes(config: Config, model: str) -> float:
    """Return the memory of the largest job but those of latency."""
    context = config["models"][model]["context"]
    batches = [task["batch_size"] for task in config["tasks"].values() if "batch_size" in task]
    # two sequences, or a batch of summaries
    jobs = [(2 * context, 0), *((n * context, n * context) for n in batches)]
    return max(job_bytes(config, model, *job) for job in jobs)


def seconds(config: Config, model: str) -> dict[str, float]:
    """Return GPU seconds by stage at the assumed speeds; each kind of task is a stage."""
    own, train = config["models"][model], config["train"]
    shape, kernel = own["shape"], train["kernel"]
    dumps = len(grid.layer_ranges(own["num_layers"], config["dump"]["layers_per_job"]))
    heads = shape["num_heads"] + shape["num_kv_heads"]
    maps = heads * kernel["hidden_size"] * (shape["head_dim"] + kernel["kernel_size"])
    width = shape["num_heads"] * shape["head_dim"]
    # the frozen output projection passes gradients on, and has none of its own
    token = (FORWARD + BACKWARD) * maps + 2 * FORWARD * width**2
    tokens = train["sequences"] * own["context"] * train["recipe"]["epochs"]
    trainings = sum(1 for training in grid.trainings(config) if training.model == model)
    stages = {
        "dump": dumps * train["sequences"] * reading(config, model, own["context"]),
        "train": trainings * own["num_layers"] * tokens * token / OPERATIONS_PER_SECOND,
    }
    for name, kind in KINDS.items():
        cells = (cell for cell in grid.task_cells(config, name) if cell.model == model)
        stages[name] = sum(grid.variants(config, c) * kind.seconds(config, c) for c in cells)
    return stages | {"latency": sum(_latency(config, model))}


def _latency(config: Config, model: str) -> Iterator[float]:
    """Yield the seconds of each contender that fits into :data:`CARD`, warming up included."""
    for setting in latency.settings(config):
        runs = config["latency"]["repetitions"] * (2 if config["latency"]["generate"] else 1)
        tokens = setting.batch * setting.prompt
        for contender in latency.contenders(config, model, setting):
            cached = contender.budget or setting.prompt + setting.new_tokens
            if job_bytes(config, model, tokens, setting.batch * cached) <= CARD:
                warm_up = setting.batch * reading(config, model, setting.prompt)
                yield runs * (warm_up + continuing(config, model, setting, cached))


def expectations(config: Config) -> list[str]:
    """Return lines for people, of the models whose `shape` is given."""
    if not all(model["shape"] for model in config["models"].values()):
        return []
    bound = config["dump"]["disk_gib"]
    how = f"at most {bound:g} allowed" if bound else "not bounded"
    lines = [f"features: {peak_disk(config) / GIB:.1f} GiB on disk at once ({how})"]
    study = " (latency: up to the card's; what does not fit is recorded)"
    unknown = [
        name for name, task in config["tasks"].items() if not KINDS[task["kind"]].known(task)
    ]
    left_out = f"; not counted: {', '.join(unknown)}" if unknown else ""
    for model in config["models"]:
        hours = {stage: count / 3600 for stage, count in seconds(config, model).items() if count}
        parts = ", ".join(f"{stage} {value:.1f}" for stage, value in hours.items())
        lines += [
            f"{model}: {feature_bytes(config, model) / GIB:.1f} GiB of features a layer; about "
            f"{gpu_bytes(config, model) / GIB:.0f} GiB of GPU memory"
            f"{study if config['latency'] else ''}",
            f"{model}: about {sum(hours.values()):.0f} GPU hours at "
            f"{OPERATIONS_PER_SECOND / 1e12:g} TFLOP/s and {BYTES_PER_SECOND / 1e12:g} TB/s: "
            f"{parts}{left_out}",
        ]
    return lines
