"""The grid of an experiment, expanded once: which jobs there are and what each measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..policies import budget_tokens
from .methods import GRID, METHODS, SCORES

Config = Mapping[str, Any]

STUDIES = {"R": "kernel_size", "P": "prompt_length", "S": "scores"}
"""Studies beside the grid, by the letter that marks their files (`h2o-0.05-R16`)."""
STUDY_METHODS = {"kernel_size": ["less"], "prompt_length": ["baseline_plus", "less"]}
"""What a study compares, where that is not all methods of the grid."""


@dataclass(frozen=True)
class Training:
    """Kernels of one model for one policy at one sparsity; of ``size`` R, if not of the grid's."""

    model: str
    policy: str
    sparsity: float
    size: int | None = None

    @property
    def suffix(self) -> str:
        """What tells its files from the grid's."""
        return "" if self.size is None else f"-R{self.size}"


@dataclass(frozen=True)
class Cell:
    """One measurement: a model on a task under a policy at a sparsity, by every method.

    ``policy`` and ``sparsity`` are None for the full cache. ``study`` and ``setting`` say which
    point of an ablation it is.
    """

    model: str
    task: str
    policy: str | None = None
    sparsity: float | None = None
    study: str = GRID
    setting: int | None = None

    @property
    def suffix(self) -> str:
        """What tells its files from the grid's."""
        letters = {study: letter for letter, study in STUDIES.items()}
        return "" if self.study == GRID else f"-{letters[self.study]}{self.setting}"


def study_of(suffix: str) -> tuple[str, int | None]:
    """(study, setting) of a file's suffix."""
    return (STUDIES[suffix[1]], int(suffix[2:])) if suffix else (GRID, None)


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


def train_sparsities(config: Config, policy: str) -> list[float]:
    """Sparsities that a policy's kernels are trained at."""
    wanted = config["grid"]["train_sparsities"]
    found: list[float] = wanted[policy] if isinstance(wanted, Mapping) else wanted
    return found


def trainings(config: Config) -> Iterator[Training]:
    """Every training; each is one job a bundle of layers. Those of the grid come first."""
    if not needs_training(config):
        return
    for model in config["models"]:
        for policy in config["grid"]["policies"]:
            for sparsity in train_sparsities(config, policy):
                yield Training(model, policy, sparsity)
    sizes, lengths = (config["ablations"][x] for x in ("kernel_sizes", "prompt_lengths"))
    if lengths and lengths["sparsity"] not in train_sparsities(config, lengths["policy"]):
        for model in config["models"]:
            yield Training(model, lengths["policy"], lengths["sparsity"])
    for model in config["models"] if sizes else ():
        for size in sizes["sizes"]:
            if size != config["train"]["kernel"]["kernel_size"]:
                yield Training(model, sizes["policy"], sizes["sparsity"], size)


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


def study_cells(config: Config) -> Iterator[Cell]:
    """Every cell of the ablations."""
    wanted = config["ablations"]
    sizes, lengths, scores = (wanted[x] for x in ("kernel_sizes", "prompt_lengths", "scores"))
    for model in config["models"]:
        for size in sizes["sizes"] if sizes else ():
            cell = (model, sizes["task"], sizes["policy"], sizes["sparsity"])
            yield Cell(*cell, "kernel_size", size)
        for length in lengths["lengths"] if lengths else ():
            cell = (model, lengths["task"], lengths["policy"], lengths["sparsity"])
            yield Cell(*cell[:2], study="prompt_length", setting=length)
            yield Cell(*cell, "prompt_length", length)
        other = 1 - SCORES.index(config["grid"]["scores"])
        for policy in scores["policies"] if scores else ():
            for sparsity in scores["sparsities"]:
                yield Cell(model, scores["task"], policy, sparsity, "scores", other)


def methods_of(config: Config, study: str) -> list[str]:
    """What a study, or the grid itself, compares with the full cache."""
    found: list[str] = STUDY_METHODS.get(study, config["grid"]["methods"])
    return found


def variants(config: Config, cell: Cell) -> int:
    """How many times a cell reads its task: for each method, and each train sparsity of one."""
    if cell.policy is None:
        return 1
    trained = len(train_sparsities(config, cell.policy)) if cell.study == GRID else 1
    methods = methods_of(config, cell.study)
    return sum(trained if METHODS[name].trained else 1 for name in methods)


def cells_of_policy(config: Config, policy: str) -> Iterator[Cell]:
    """Every cell of one policy, and the full cache's that it is compared with."""
    return (cell for cell in task_cells(config) if cell.policy in (None, policy))


def task_cells(config: Config, kind: str | None = None) -> Iterator[Cell]:
    """Every cell of every task (of a kind), the full cache first, then those of the ablations."""
    tasks = config["tasks"]
    for name, task in tasks.items():
        if kind in (None, task["kind"]):
            for model in config["models"]:
                yield Cell(model, name)
            yield from policy_cells(config, name, task)
    for cell in study_cells(config):
        if kind in (None, tasks[cell.task]["kind"]):
            yield cell
