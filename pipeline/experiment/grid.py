"""The grid of an experiment, expanded once: which jobs there are and what each measures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..policies import FAMILIES, budget_tokens
from .methods import FULL, GRID, METHODS, SCORES, Method

Config = Mapping[str, Any]

STUDIES = {"R": "kernel_size", "P": "prompt_length", "S": "scores"}
"""Studies beside the grid, by the letter that marks their files (`h2o-0.05-R16`)."""
STUDY_METHODS: dict[str, Callable[[Method], bool]] = {
    "kernel_size": lambda method: method.trained,
    "prompt_length": lambda method: method.trained or method.extra_tokens,
}
"""Which methods a study compares, where that is not all methods of the grid."""
SUFFIX = rf"(-[{''.join(STUDIES)}]\d+)?"
TRAINING = rf"({'|'.join(map(re.escape, FAMILIES))})-(\d+(?:\.\d+)?(?:e-\d+)?){SUFFIX}"
"""What the name of a training looks like, and of a cell under a policy: `h2o-0.05-R16`."""
CELL = rf"(?:{FULL}{SUFFIX}|{TRAINING})"
"""What the name of a cell looks like."""


@dataclass(frozen=True)
class Training:
    """One kernel of a model, for one policy at one sparsity; of ``size`` R, if not of the grid's.

    Attributes:
        kernel: name in :data:`pipeline.kernels.KERNELS`.
    """

    model: str
    kernel: str
    policy: str
    sparsity: float
    size: int | None = None

    @property
    def name(self) -> str:
        """What its files are called."""
        size = "" if self.size is None else f"-R{self.size}"
        return f"{self.policy}-{self.sparsity}{size}"

    @classmethod
    def of(cls, model: str, kernel: str, name: str) -> Training:
        """Return the training whose files have a name."""
        policy, sparsity, suffix = _parts(TRAINING, name)
        return cls(model, kernel, policy, float(sparsity), _setting(suffix))


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

    @property
    def name(self) -> str:
        """What its files are called."""
        where = FULL if self.policy is None else f"{self.policy}-{self.sparsity}"
        return where + self.suffix

    @classmethod
    def of(cls, model: str, task: str, name: str) -> Cell:
        """Return the cell whose files have a name."""
        of_full, policy, sparsity, of_policy = _parts(CELL, name)
        suffix = of_full or of_policy
        study = STUDIES[suffix[1]] if suffix else GRID
        setting = _setting(suffix)
        if not policy:
            return cls(model, task, study=study, setting=setting)
        return cls(model, task, policy, float(sparsity), study, setting)


def _parts(pattern: str, name: str) -> tuple[str, ...]:
    """Return the groups of a whole name, which a rule's wildcards have let through."""
    match = re.fullmatch(pattern, name)
    assert match is not None, name
    return match.groups(default="")


def _setting(suffix: str) -> int | None:
    """Return the number of a suffix, if there is one."""
    return int(suffix[2:]) if suffix else None


def layer_ranges(num_layers: int, size: int) -> list[tuple[int, int]]:
    """Return [start, stop) of consecutive bundles of at most ``size`` layers."""
    return [(a, min(a + size, num_layers)) for a in range(0, num_layers, size)]


def overlapping(ranges: list[tuple[int, int]], start: int, stop: int) -> list[int]:
    """Return the places of the ranges that share a layer with [start, stop)."""
    return [i for i, (a, b) in enumerate(ranges) if a < stop and start < b]


def budget(config: Config, model: str, sparsity: float) -> int:
    """Return the tokens that a sparsity means for a model."""
    return budget_tokens(sparsity, config["models"][model]["context"])


def trained_kernels(config: Config) -> list[str]:
    """Return the kernels that methods of the grid train, each once."""
    methods = (METHODS[name] for name in config["grid"]["methods"])
    return list(dict.fromkeys(m.kernel for m in methods if m.trained and m.kernel))


def needs_training(config: Config) -> bool:
    """Tell whether any method of the grid has trained kernels."""
    return bool(trained_kernels(config))


def train_sparsities(config: Config, policy: str) -> list[float]:
    """Return the sparsities that a policy's kernels are trained at."""
    wanted = config["grid"]["train_sparsities"]
    sparsities: list[float] = wanted[policy] if isinstance(wanted, Mapping) else wanted
    return sparsities


def trainings(config: Config) -> Iterator[Training]:
    """Yield every training; each is one job a bundle of layers. Those of the grid come first."""
    each = [(model, kernel) for model in config["models"] for kernel in trained_kernels(config)]
    for model, kernel in each:
        for policy in config["grid"]["policies"]:
            for sparsity in train_sparsities(config, policy):
                yield Training(model, kernel, policy, sparsity)
    sizes, lengths = (config["ablations"][x] for x in ("kernel_sizes", "prompt_lengths"))
    if lengths and lengths["sparsity"] not in train_sparsities(config, lengths["policy"]):
        for model, kernel in each:
            yield Training(model, kernel, lengths["policy"], lengths["sparsity"])
    for model, kernel in each if sizes else ():
        for size in sizes["sizes"]:
            if size != config["train"]["kernel"]["kernel_size"]:
                yield Training(model, kernel, sizes["policy"], sizes["sparsity"], size)


def trainings_of(config: Config, cell: Cell) -> list[Training]:
    """Return what a cell's kernels come from.

    Of the grid all sparsities of each kernel, of an ablation those of its own sparsity.
    """
    if cell.policy is None or cell.sparsity is None:
        return []
    own = config["train"]["kernel"]["kernel_size"]
    size = cell.setting if cell.study == "kernel_size" and cell.setting != own else None
    of_grid = cell.study == GRID
    sparsities = train_sparsities(config, cell.policy) if of_grid else [cell.sparsity]
    return [
        Training(cell.model, kernel, cell.policy, sparsity, size)
        for kernel in trained_kernels(config)
        for sparsity in sparsities
    ]


def policy_cells(
    config: Config, task: str, only: Mapping[str, Any] | None = None
) -> Iterator[Cell]:
    """Yield cells of the grid for one task, the full cache left out.

    Args:
        only: ``policies`` and ``sparsities`` that the task is restricted to, if it is.
    """
    only, whole = only or {}, config["grid"]
    for model in config["models"]:
        for policy in only.get("policies", whole["policies"]):
            for sparsity in only.get("sparsities", whole["test_sparsities"]):
                yield Cell(model, task, policy, sparsity)


def study_cells(config: Config) -> Iterator[Cell]:
    """Yield every cell of the ablations."""
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
    """Return what a study, or the grid itself, compares with the full cache."""
    own: list[str] = config["grid"]["methods"]
    chosen = STUDY_METHODS.get(study)
    if chosen is None:
        return own
    compared = (name for name, method in METHODS.items() if chosen(method))
    return [name for name in compared if name in own or not METHODS[name].trained]


def variants(config: Config, cell: Cell) -> int:
    """Count how often a cell reads its task: for each method, and each train sparsity of one."""
    if cell.policy is None:
        return 1
    trained = len(train_sparsities(config, cell.policy)) if cell.study == GRID else 1
    methods = methods_of(config, cell.study)
    return sum(trained if METHODS[name].trained else 1 for name in methods)


def cells_of_policy(config: Config, policy: str) -> Iterator[Cell]:
    """Yield every cell of one policy, and the full cache's that it is compared with."""
    return (cell for cell in task_cells(config) if cell.policy in (None, policy))


def task_cells(config: Config, kind: str | None = None) -> Iterator[Cell]:
    """Yield every cell of every task (of a kind), the full cache first, the ablations last."""
    tasks = config["tasks"]
    for name, task in tasks.items():
        if kind in (None, task["kind"]):
            for model in config["models"]:
                yield Cell(model, name)
            yield from policy_cells(config, name, task)
    for cell in study_cells(config):
        if kind in (None, tasks[cell.task]["kind"]):
            yield cell
