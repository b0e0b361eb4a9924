"""Measure teacher-forced perplexity under a policy by every method, window by window."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from ..measure.perplexity import window_nll
from ..measure.variants import attached, compared
from ..runtime.progress import Progress
from ..storage.files import save_table
from ..storage.tensors import load_tensors
from ..transformer.weights import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less-kv evaluate``."""
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
