"""What a cell compares: its methods as variants of one policy, each with its budget and kernels."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from ..attention import attach
from ..errors import ConfigError
from ..eviction import Scores
from ..experiment.methods import FULL, METHODS
from ..kernels import Kernel, get_kernel, layer_seed
from ..policies import Policy, get_policy
from ..storage.files import save_table
from ..training.checkpoint import kernel_in, kernels_for
from ..transformer.shape import model_shape


@dataclass(frozen=True)
class Variant:
    """A method as it is measured.

    Attributes:
        train_sparsity: that its kernels were trained at, if they were.
        policy: with its budget; None for the full cache.
        kernels: one a layer, or None for the policy alone.
    """

    method: str
    train_sparsity: float | None = None
    policy: Policy | None = None
    kernels: Sequence[Kernel] | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """What names the variant in a row of measurements; the full cache has a budget of 0."""
        budget = 0 if self.policy is None else self.policy.budget
        return {
            "method": self.method,
            "train_sparsity": self.train_sparsity,
            "budget": budget,
        }

    def attached(self, model: PreTrainedModel, scores: Scores) -> AbstractContextManager[Any]:
        """Return a context in which ``model`` reads whole sequences as the variant does."""
        if self.policy is None:
            return nullcontext()
        return attach(model, self.policy, self.kernels, scores)


@dataclass(frozen=True)
class Compared:
    """What a measuring step is told to compare, under one policy or of the full cache.

    Attributes:
        policy: name, or None for the full cache alone.
        budget: tokens that the policy keeps before a method adds to them.
        methods: names in :data:`pipeline.experiment.methods.METHODS`.
        kernels: files of trained kernels, one for each of ``train_sparsities``.
        kernel_size: R of the low-rank state.
        seed: of random features.
        label: columns that every row carries.
    """

    policy: str | None = None
    budget: int | None = None
    scores: Scores = "cached"
    methods: Sequence[str] = ()
    kernels: Sequence[Path] = ()
    train_sparsities: Sequence[float] = ()
    kernel_size: int = 8
    seed: int = 0
    label: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Compared:
        """Return what the options of :func:`pipeline.runtime.options.add_compared` say."""
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})

    def __post_init__(self) -> None:
        if self.policy is not None and (self.budget is None or not self.methods):
            raise ConfigError("a policy needs --budget and --methods.")
        if len(self.kernels) != len(self.train_sparsities):
            raise ConfigError(
                f"{len(self.kernels)} --kernels have {len(self.train_sparsities)} "
                "--train-sparsities; give one for each, in the same order."
            )

    @property
    def matters(self) -> dict[str, Any]:
        """What rows depend on beside the content of the kernels, as plain data."""
        names = ("policy", "budget", "scores", "methods", "train_sparsities", "kernel_size", "seed")
        return {name: getattr(self, name) for name in names}

    def variants(self, model: PreTrainedModel) -> list[Variant]:
        """Return everything that is compared; kernels are where the model is.

        Raises:
            ConfigError: an unknown policy, or kernels that no method is trained with.
            DataError: kernels of another model, or damaged ones.
        """
        if self.policy is None or self.budget is None:
            return [Variant(FULL)]
        shape = model_shape(model.config)
        trained = {METHODS[name].kernel for name in self.methods if METHODS[name].trained}
        for path in self.kernels:
            if kernel_in(path) not in trained:
                raise ConfigError(
                    f"{path} holds kernels '{kernel_in(path)}', which none of --methods is trained "
                    "with; leave it out, or name their method."
                )
        variants: list[Variant] = []
        for name in self.methods:
            method = METHODS[name]
            policy = get_policy(self.policy, method.budget(self.budget, self.kernel_size))
            if method.trained:
                variants += [
                    Variant(name, sparsity, policy, kernels_for(model, path))
                    for sparsity, path in zip(self.train_sparsities, self.kernels, strict=True)
                    if kernel_in(path) == method.kernel
                ]
            elif method.kernel is not None:
                sizes = {**vars(shape.heads), "kernel_size": self.kernel_size}
                kernels = [
                    get_kernel(method.kernel, **sizes, seed=layer_seed(self.seed, layer))
                    for layer in range(shape.num_layers)
                ]
                kernels = [kernel.to(model.device) for kernel in kernels]
                variants.append(Variant(name, None, policy, kernels))
            else:
                variants.append(Variant(name, None, policy))
        return variants

    def save(self, out: Path, rows: Sequence[Mapping[str, Any]], kind: str, **columns: Any) -> None:
        """Write rows of measurements with the columns that all of them share."""
        table = pd.DataFrame(rows).astype({"train_sparsity": float})
        save_table(out, table.assign(policy=self.policy, **columns, **self.label), kind)
