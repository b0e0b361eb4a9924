"""Measure teacher-forced perplexity under a policy by every method, window by window."""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pipeline.attention import attach
from pipeline.checkpoint import Heads
from pipeline.errors import ConfigError
from pipeline.files import save_table
from pipeline.kernels import Kernel, get_kernel
from pipeline.methods import FULL, METHODS
from pipeline.models import load_model, model_shape
from pipeline.policies import get_policy
from pipeline.progress import Progress
from pipeline.tensors import load_tensors
from pipeline.trained import kernels_for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less evaluate``."""
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=Path, required=True)
    add_cell_arguments(parser)
    parser.add_argument("--out", type=Path, required=True)


def add_cell_arguments(parser: argparse.ArgumentParser) -> None:
    """What names a cell of the grid: policy, budget, methods and the kernels they need."""
    parser.add_argument("--policy", help="leave out for the full cache")
    parser.add_argument("--budget", type=int, help="tokens")
    parser.add_argument("--scores", default="cached", help="cached or full")
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--kernels", type=Path, nargs="*", default=[], help="trained kernels")
    parser.add_argument(
        "--train-sparsities", type=float, nargs="*", default=[], help="of the kernels, in order"
    )
    parser.add_argument("--kernel-size", type=int, default=8, help="R of the low-rank state")
    parser.add_argument("--seed", type=int, default=0, help="of random features")
    parser.add_argument(
        "--label", type=json.loads, default={}, help="columns every row carries, as JSON"
    )


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


@torch.inference_mode()
def window_nll(model: Any, tokens: torch.Tensor) -> float:
    """Summed negative log-likelihood in nats of tokens (1, S) given those before them."""
    logits = model(tokens, use_cache=False).logits[0, :-1].float()
    return float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))


def run(args: argparse.Namespace) -> None:
    """Write one row a method, train sparsity and window: summed loss, tokens and words."""
    samples, header = load_tensors(args.samples, "samples")
    model = load_model(args.model, args.dtype, args.device)
    cells = compared(args, model)
    progress = Progress("evaluate", len(cells) * len(samples["tokens"]))
    rows: list[dict[str, Any]] = []
    for method, train_sparsity, budget, kernels in cells:
        with attached(model, args, budget, kernels):
            for index, tokens in enumerate(samples["tokens"].long().to(args.device)):
                nll = window_nll(model, tokens[None])
                rows.append(
                    {
                        "method": method,
                        "train_sparsity": train_sparsity,
                        "budget": budget,
                        "document": header["documents"][index],
                        "tokens": len(tokens) - 1,
                        "words": int(samples["words"][index]),
                        "nll": nll,
                    }
                )
                progress.step(f"{method}: {nll / (len(tokens) - 1):.3f} nats a token")
    save_table(args.out, pd.DataFrame(rows).assign(policy=args.policy, **args.label))
