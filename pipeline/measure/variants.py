"""What a cell compares: methods, their budgets and their kernels."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from transformers import PreTrainedModel

from ..attention import attach
from ..errors import ConfigError
from ..experiment.methods import FULL, METHODS
from ..kernels import Kernel, get_kernel
from ..policies import get_policy
from ..training.checkpoint import Heads, kernels_for
from ..transformer.shape import model_shape

Variant = tuple[str, float | None, int, list[Kernel] | None]
"""A method with its train sparsity (if trained), budget in tokens, and kernels (if any)."""


def variants(args: argparse.Namespace, model: PreTrainedModel) -> list[Variant]:
    """Everything a cell compares; kernels are where the model is.

    Raises:
        ConfigError: not one train sparsity for each file of kernels.
    """
    if len(args.kernels) != len(args.train_sparsities):
        raise ConfigError(
            f"{len(args.kernels)} --kernels have {len(args.train_sparsities)} --train-sparsities; "
            "give one for each, in the same order."
        )
    shape = model_shape(model.config)
    heads = Heads(shape.num_heads, shape.num_kv_heads, shape.head_dim)
    found: list[Variant] = []
    for name in args.methods:
        method = METHODS[name]
        budget = args.budget + (args.kernel_size // 2 if method.extra_tokens else 0)
        if method.trained:
            for sparsity, path in zip(args.train_sparsities, args.kernels, strict=True):
                trained: list[Kernel] = list(kernels_for(model, path))
                found.append((name, sparsity, budget, trained))
        elif method.kernel is not None:
            untrained: list[Kernel] = [
                get_kernel(
                    method.kernel, **vars(heads), kernel_size=args.kernel_size,
                    seed=args.seed * 1009 + layer,
                ).to(model.device)
                for layer in range(shape.num_layers)
            ]  # fmt: skip
            found.append((name, None, budget, untrained))
        else:
            found.append((name, None, budget, None))
    return found


def compared(args: argparse.Namespace, model: PreTrainedModel) -> list[Variant]:
    """What a cell measures: its variants under a policy, or the full cache.

    Raises:
        ConfigError: a policy without a budget or methods.
    """
    if args.policy is None:
        return [(FULL, None, 0, None)]
    if args.budget is None or not args.methods:
        raise ConfigError("a policy needs --budget and --methods.")
    return variants(args, model)


def attached(
    model: PreTrainedModel, args: argparse.Namespace, budget: int, kernels: list[Kernel] | None
) -> AbstractContextManager[Any]:
    """The model as a variant of the cell has it, within a ``with``."""
    if args.policy is None:
        return nullcontext()
    return attach(model, get_policy(args.policy, budget), kernels, args.scores)
