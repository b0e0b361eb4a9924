"""What a run will take, from its configuration alone: disk, GPU memory and GPU hours.

Planning a run imports this, so nothing heavy is imported. Hours count operations and assume
:data:`OPERATIONS_PER_SECOND`; they are there to tell an afternoon from a month.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import grid
from pipeline.methods import METHODS
from pipeline.space import GIB

Config = Mapping[str, Any]

OPERATIONS_PER_SECOND = 1.0e14
"""Assumed of one GPU in half precision: about a third of an A100's peak."""
HALF = 2
"""Bytes of a half-precision number."""
FORWARD, BACKWARD = 2, 4
"""Operations a weight and token, in a forward pass and in a backward one."""


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


def peak_disk(config: Config) -> int:
    """Bytes of features on disk at the fullest moment."""
    models, at_once = config["models"], bundles_at_once(config)
    if at_once is None:
        return sum(feature_bytes(config, m) * model["num_layers"] for m, model in models.items())
    return at_once * max(bundle_bytes(config, model) for model in models)


def gpu_bytes(config: Config, model: str) -> int:
    """Memory of the largest job: the weights, and a forward pass's features of two sequences."""
    own = config["models"][model]
    features = feature_bytes(config, model) // config["train"]["sequences"]
    return int(own["shape"]["parameters"] * HALF + 2 * 2 * features)


def operations(config: Config, model: str) -> dict[str, float]:
    """Operations by stage: dumping, training, and teacher-forced windows of evaluation."""
    own, train = config["models"][model], config["train"]
    shape, kernel = own["shape"], train["kernel"]
    forward = FORWARD * shape["parameters"] * own["context"]
    dumps = len(grid.layer_ranges(own["num_layers"], config["dump"]["layers_per_job"]))
    heads = shape["num_heads"] + shape["num_kv_heads"]
    maps = heads * kernel["hidden_size"] * (shape["head_dim"] + kernel["kernel_size"])
    width = shape["num_heads"] * shape["head_dim"]
    # the frozen output projection passes gradients on, and has none of its own
    token = (FORWARD + BACKWARD) * maps + 2 * FORWARD * width**2
    tokens = train["sequences"] * own["context"] * train["recipe"]["epochs"]
    trainings = sum(1 for training in grid.trainings(config) if training.model == model)
    return {
        "dump": dumps * train["sequences"] * forward,
        "train": trainings * own["num_layers"] * tokens * token,
        "perplexity": forward * sum(_windows(config, model)),
    }


def _windows(config: Config, model: str) -> Iterator[int]:
    """Windows of every perplexity cell, by every variant; tasks of other kinds are not counted."""
    for cell in grid.task_cells(config, "perplexity"):
        if cell.model == model:
            variants = 1
            if cell.policy is not None:
                trained = len(grid.train_sparsities(config, cell.policy))
                methods = config["grid"]["methods"]
                variants = sum(trained if METHODS[name].trained else 1 for name in methods)
            yield variants * config["tasks"][cell.task]["windows"]


def expectations(config: Config) -> list[str]:
    """Lines for people, of the models whose `shape` is given."""
    if not all(model["shape"] for model in config["models"].values()):
        return []
    bound = config["dump"]["disk_gib"]
    how = f"at most {bound:g} allowed" if bound else "not bounded"
    lines = [f"features: {peak_disk(config) / GIB:.1f} GiB on disk at once ({how})"]
    for model in config["models"]:
        hours = {
            stage: count / OPERATIONS_PER_SECOND / 3600
            for stage, count in operations(config, model).items()
        }
        parts = ", ".join(f"{stage} {value:.1f}" for stage, value in hours.items())
        lines.append(
            f"{model}: {feature_bytes(config, model) / GIB:.1f} GiB of features a layer; about "
            f"{gpu_bytes(config, model) / GIB:.0f} GiB of GPU memory; GPU hours at "
            f"{OPERATIONS_PER_SECOND / 1e12:g} TFLOP/s: {parts} (harness tasks and summaries not "
            "counted)"
        )
    return lines
