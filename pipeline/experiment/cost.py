"""What a run will take, from its configuration alone: disk, GPU memory and GPU hours.

Planning a run imports this, so nothing heavy is imported. Hours count operations, and what decode
steps read from memory, at assumed speeds; they are there to tell an afternoon from a month. The
host's own time is not in them, nor are the few windows of fidelity and maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..storage.disk import GIB
from . import grid, latency
from .latency import Setting

Config = Mapping[str, Any]

OPERATIONS_PER_SECOND = 1.0e14
"""Assumed of one GPU in half precision: about a third of an A100's peak."""
BYTES_PER_SECOND = 1.0e12
"""Assumed of its memory, which decode steps wait for: about half of an A100's."""
CARD = 80 * GIB
"""Assumed of its memory, too: what takes more in the latency study ends soon."""
HALF = 2
"""Bytes of a half-precision number."""
FORWARD, BACKWARD = 2, 4
"""Operations a weight and token, in a forward pass and in a backward one."""
TEXTS = {
    "wikitext": (62, 3891), "pg19": (100, 69665), "boolq": (3270, 107), "mutual": (886, 433),
}  # fmt: skip
"""By task of lm-evaluation-harness, documents that are measured where all are, and the mean of the
words read for one (MuTual's prompt before each of four answers; PG-19 as its paper counts it)."""
TOKENS_A_WORD = 1.4
"""Of English, roughly."""


def feature_bytes(config: Config, model: str) -> int:
    """Disk that the features of one layer take: q, k, v of every token in half precision."""
    shape, train = config["models"][model]["shape"], config["train"]
    numbers = (shape["num_heads"] + 2 * shape["num_kv_heads"]) * shape["head_dim"]
    return int(train["sequences"] * config["models"][model]["context"] * numbers * HALF)


def bundle_bytes(config: Config, model: str) -> int:
    """Disk that the layers of one dump job take."""
    layers: int = min(config["dump"]["layers_per_job"], config["models"][model]["num_layers"])
    return layers * feature_bytes(config, model)


def bundles_at_once(config: Config) -> int | None:
    """How many bundles of layers fit into `dump.disk_gib`, None where nothing bounds them."""
    bound = config["dump"]["disk_gib"]
    if bound is None:
        return None
    largest = max(bundle_bytes(config, model) for model in config["models"])
    return int(bound * GIB // largest)


def bundles_of_a_training(config: Config) -> int:
    """How many bundles of layers one job of training reads, at most."""
    found = 0
    for model in config["models"].values():
        dumps, trains = (
            grid.layer_ranges(model["num_layers"], config[x]["layers_per_job"])
            for x in ("dump", "train")
        )
        found = max(found, *(len(grid.overlapping(dumps, *layers)) for layers in trains))
    return found


def peak_disk(config: Config) -> int:
    """Bytes of features on disk at the fullest moment."""
    models, at_once = config["models"], bundles_at_once(config)
    everything: int = sum(feature_bytes(config, m) * x["num_layers"] for m, x in models.items())
    if at_once is None:
        return everything
    bounded: int = at_once * max(bundle_bytes(config, model) for model in models)
    return min(everything, bounded)


def cache_bytes(config: Config, model: str, tokens: float) -> float:
    """Memory of the keys and values of ``tokens`` in half precision, all layers."""
    own = config["models"][model]
    shape = own["shape"]
    numbers = 2 * own["num_layers"] * shape["num_kv_heads"] * shape["head_dim"]
    return float(HALF * numbers * tokens)


def job_bytes(config: Config, model: str, tokens: int, cached: int) -> float:
    """GPU memory of a job: the weights, what a layer makes of ``tokens``, and a cache."""
    own, train = config["models"][model], config["train"]
    token = feature_bytes(config, model) / (train["sequences"] * own["context"])
    weights = HALF * own["shape"]["parameters"]
    return float(weights + 2 * token * tokens + cache_bytes(config, model, cached))


def gpu_bytes(config: Config, model: str) -> float:
    """Memory of the largest job but those of latency: two sequences, or a batch of summaries."""
    context = config["models"][model]["context"]
    batches = [task["batch_size"] for task in config["tasks"].values() if "batch_size" in task]
    jobs = [(2 * context, 0), *((n * context, n * context) for n in batches)]
    return max(job_bytes(config, model, *job) for job in jobs)


def seconds(config: Config, model: str) -> dict[str, float]:
    """GPU seconds by stage at the assumed speeds; each kind of task is a stage."""
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
    found = {
        "dump": dumps * train["sequences"] * _reading(config, model, own["context"]),
        "train": trainings * own["num_layers"] * tokens * token / OPERATIONS_PER_SECOND,
    }
    for kind, seconds_of in KINDS.items():
        cells = (cell for cell in grid.task_cells(config, kind) if cell.model == model)
        found[kind] = sum(grid.variants(config, c) * seconds_of(config, c) for c in cells)
    return found | {"latency": sum(_latency(config, model))}


def _reading(config: Config, model: str, tokens: float, window: float = math.inf) -> float:
    """Seconds of forward passes over ``tokens`` in windows; a token attends to half of its own."""
    own = config["models"][model]
    shape = own["shape"]
    attention = own["num_layers"] * shape["num_heads"] * shape["head_dim"] * min(tokens, window)
    return float(FORWARD * tokens * (shape["parameters"] + attention) / OPERATIONS_PER_SECOND)


def _continuing(config: Config, model: str, setting: Setting, cached: int) -> float:
    """Seconds of prompts and their continuation; each step reads weights and ``cached`` tokens."""
    weights = config["models"][model]["shape"]["parameters"]
    moved = HALF * weights + cache_bytes(config, model, setting.batch * cached)
    work = FORWARD * weights * setting.batch
    step = moved / BYTES_PER_SECOND + work / OPERATIONS_PER_SECOND
    read = setting.batch * _reading(config, model, setting.prompt)
    return float(read + setting.new_tokens * step)


def _perplexity(config: Config, cell: grid.Cell) -> float:
    """Seconds of one variant of a cell."""
    context = config["models"][cell.model]["context"]
    windows: int = config["tasks"][cell.task]["windows"]
    return windows * _reading(config, cell.model, context)


def _harness(config: Config, cell: grid.Cell) -> float:
    """The same; a text that is not known fills the context, and counts only with a ``limit``."""
    task, context = config["tasks"][cell.task], config["models"][cell.model]["context"]
    documents, words = TEXTS.get(task["task"], (0, context / TOKENS_A_WORD))
    tokens = TOKENS_A_WORD * min(words, task["max_words"] or words) * (1 + task["num_fewshot"])
    count: int = task["limit"] or documents
    return count * _reading(config, cell.model, tokens, context)


def _summaries(config: Config, cell: grid.Cell) -> float:
    """The same; prompts fill the context but where their length is studied."""
    task, context = config["tasks"][cell.task], config["models"][cell.model]["context"]
    new, batch = task["max_new_tokens"], task["batch_size"]
    count, prompt = task["samples"], context - new
    if cell.study == "prompt_length":
        count, prompt = config["ablations"]["prompt_lengths"]["samples"], cell.setting
    cached = prompt + new
    if cell.sparsity is not None:
        cached = grid.budget(config, cell.model, cell.sparsity)
    batches: float = count / batch
    return batches * _continuing(config, cell.model, Setting(prompt, new, batch), cached)


KINDS = {"perplexity": _perplexity, "harness": _harness, "summaries": _summaries}
"""By kind of task, what one variant of a cell takes."""


def _latency(config: Config, model: str) -> Iterator[float]:
    """Seconds of each contender that fits into :data:`CARD`; what warms it up reads its prompt."""
    for setting in latency.settings(config):
        runs = config["latency"]["repetitions"] * (2 if config["latency"]["generate"] else 1)
        tokens = setting.batch * setting.prompt
        for contender in latency.contenders(config, model, setting):
            cached = contender.budget or setting.prompt + setting.new_tokens
            if job_bytes(config, model, tokens, setting.batch * cached) <= CARD:
                warm_up = setting.batch * _reading(config, model, setting.prompt)
                yield runs * (warm_up + _continuing(config, model, setting, cached))


def expectations(config: Config) -> list[str]:
    """Lines for people, of the models whose `shape` is given."""
    if not all(model["shape"] for model in config["models"].values()):
        return []
    bound = config["dump"]["disk_gib"]
    how = f"at most {bound:g} allowed" if bound else "not bounded"
    lines = [f"features: {peak_disk(config) / GIB:.1f} GiB on disk at once ({how})"]
    study = " (latency: up to the card's; what does not fit is recorded)"
    unknown = [
        name
        for name, task in config["tasks"].items()
        if task["kind"] == "harness" and not task["limit"] and task["task"] not in TEXTS
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
