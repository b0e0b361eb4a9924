"""The grid of an experiment, expanded once: which jobs there are and what each measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.methods import METHODS
from pipeline.policies import budget_tokens

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """Kernels of one model for one policy at one sparsity."""

    model: str
    policy: str
    sparsity: float


@dataclass(frozen=True)
class Cell:
    """One measurement: a model on a task under a policy at a sparsity, by every method.

    ``policy`` and ``sparsity`` are None for the full cache.
    """

    model: str
    task: str
    policy: str | None = None
    sparsity: float | None = None


def layer_ranges(num_layers: int, size: int) -> list[tuple[int, int]]:
    """[start, stop) of consecutive bundles of at most ``size`` layers."""
    return [(a, min(a + size, num_layers)) for a in range(0, num_layers, size)]


def overlapping(ranges: list[tuple[int, int]], start: int, stop: int) -> list[int]:
    """Places of the ranges that share a layer with [start, stop)."""
    return [i for i, (a, b) in enumerate(ranges) if a < stop and start < b]


def budget(config: Config, model: str, sparsity: float) -> int:
    """Tokens that a sparsity means for a model."""
    return budget_tokens(sparsity, config["models"][model]["context"])


def needs_training(config: Config) -> bool:
    """Whether any method of the grid has trained kernels."""
    return any(METHODS[name].trained for name in config["grid"]["methods"])


def trainings(config: Config) -> Iterator[Training]:
    """Every training of the grid; each is one job a bundle of layers."""
    if not needs_training(config):
        return
    for model in config["models"]:
        for policy in config["grid"]["policies"]:
            for sparsity in config["grid"]["train_sparsities"]:
                yield Training(model, policy, sparsity)


def policy_cells(
    config: Config, task: str, only: Mapping[str, Any] | None = None
) -> Iterator[Cell]:
    """Cells of the grid for one task, the full cache left out.

    Args:
        only: ``policies`` and ``sparsities`` that the task is restricted to, if it is.
    """
    only, whole = only or {}, config["grid"]
    for model in config["models"]:
        for policy in only.get("policies", whole["policies"]):
            for sparsity in only.get("sparsities", whole["test_sparsities"]):
                yield Cell(model, task, policy, sparsity)


def task_cells(config: Config, kind: str | None = None) -> Iterator[Cell]:
    """Every cell of every task (of a kind), the full cache first."""
    for name, task in config["tasks"].items():
        if kind in (None, task["kind"]):
            for model in config["models"]:
                yield Cell(model, name)
            yield from policy_cells(config, name, task)
