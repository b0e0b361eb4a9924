"""What is wrong with a task of one kind, beyond what its section says."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import ConfigError, unknown
from ..text.prompts import templates

TaskCheck = Callable[[str, Mapping[str, Any], Mapping[str, Any]], Iterator[ConfigError]]
"""Of (the task's place, the task, the configuration)."""
WHICH_TEXT = ("source", "path", "name", "split")
"""Keys that say which documents a data set reads; the others say which part, and how."""
WITHOUT_SUMMARIES = ("wikipedia_sample",)
"""Sources whose documents have no summaries."""


def summaries_checks(
    place: str, task: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """Yield what is wrong with a task of summaries."""
    datasets = config["datasets"]
    if task["template"] not in templates():
        error = unknown("template", task["template"], templates())
        yield ConfigError(f"{place}.template: {error}")
    shots, pool = task["demonstrations"], task.get("demonstration_dataset")
    if bool(shots) != (pool is not None):
        yield ConfigError(
            f"{place}: {shots} demonstrations and demonstration_dataset {pool or 'missing'}; "
            "give both or neither."
        )
    if pool is not None:
        yield from pool_checks(place, "demonstration_dataset", pool, task["dataset"], datasets)
    for name in (name for name in (task["dataset"], pool) if name in datasets):
        source = datasets[name]["source"]
        if source in WITHOUT_SUMMARIES:
            yield ConfigError(f"{place}: the documents of '{name}' ({source}) have no summaries.")
    for name, model in config["models"].items():
        if task["max_new_tokens"] >= model["context"]:
            yield ConfigError(
                f"{place}: {task['max_new_tokens']} new tokens leave no room for a prompt in the "
                f"context of {model['context']} of models.{name}."
            )


def harness_checks(
    place: str, task: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """Yield what is wrong with a task of lm-evaluation-harness."""
    pool = task.get("fewshot_dataset")
    if "dataset" not in task:
        for key in ("fewshot_dataset", "max_words"):
            if task.get(key) is not None:
                yield ConfigError(f"{place}.{key}: needs `dataset`, in place of the download.")
    elif pool is not None:
        yield from pool_checks(place, "fewshot_dataset", pool, task["dataset"], config["datasets"])
    if pool is not None and not task["num_fewshot"]:
        yield ConfigError(f"{place}: fewshot_dataset is of use with num_fewshot only.")


def part_checks(
    place: str, task: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """Yield what a task is restricted to, but the grid does not have."""
    for key, whole in (("policies", "policies"), ("sparsities", "test_sparsities")):
        for value in task.get(key, ()):
            if value not in config["grid"][whole]:
                known = ", ".join(map(str, config["grid"][whole]))
                yield ConfigError(f"{place}.{key}: {value} is not in grid.{whole} ({known}).")


def pool_checks(
    place: str, key: str, pool: str, measured: str, datasets: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """Yield what is wrong with the data set that demonstrations come from."""
    if pool not in datasets:
        yield ConfigError(f"{place}.{key}: {unknown('data set', pool, datasets)}")
    elif overlap(datasets[pool], datasets[measured]):
        yield ConfigError(
            f"{place}: demonstrations from '{pool}' could be the documents that are measured, in "
            f"'{measured}'; use another split, or `documents` ranges apart."
        )


def overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Tell whether two data sets can share documents: same text, same split, ranges not apart."""
    if any(text_of(a).get(key) != text_of(b).get(key) for key in WHICH_TEXT):
        return False
    (a_start, a_stop), (b_start, b_stop) = (x.get("documents", [0, math.inf]) for x in (a, b))
    return bool(a_start < b_stop and b_start < a_stop)


def text_of(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a data set with its keys' other spellings out of the way."""
    if dataset["source"] == "jsonl":
        return {"source": "jsonl", "path": os.path.normpath(dataset["path"])}
    if dataset["source"] == "wikipedia_sample":
        return {"source": "wikipedia_sample"}
    return dataset
