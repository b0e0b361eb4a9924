"""Hellinger distance between true and approximated attention rows, layer by layer.

Queries and keys are those of the full model, so that a layer is judged by itself; rows count that
miss something, every :data:`STRIDE`-th of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..errors import ConfigError
from ..eviction import evicted_at
from ..measure.fidelity import STRIDE, hellinger
from ..measure.variants import variants
from ..ops.times import evictions_seen
from ..policies import get_policy
from ..runtime.progress import Progress
from ..storage.files import save_table
from ..storage.tensors import load_tensors
from ..transformer.interface import record
from ..transformer.weights import load_model
from .evaluate import add_cell_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less-kv fidelity``."""
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=Path, required=True)
    add_cell_arguments(parser)
    parser.add_argument("--out", type=Path, required=True)


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Write one row a method, train sparsity, layer and window: the mean over heads and rows."""
    samples, header = load_tensors(args.samples, "samples")
    model = load_model(args.model, args.dtype, args.device)
    cells = variants(args, model)
    if not cells:
        raise ConfigError("give --policy, --budget and --methods.")
    rows: list[dict[str, Any]] = []
    current = {"document": ""}

    def receive(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        for method, train_sparsity, budget, kernels in cells:
            times = evicted_at(q, k, get_policy(args.policy, budget), args.scores)
            kernel = None if kernels is None else kernels[layer]
            queries = torch.arange(evictions_seen(times)[0], q.shape[2], STRIDE, device=q.device)
            distances = hellinger(q, k, times, queries, kernel)
            rows.append(
                {
                    "method": method,
                    "train_sparsity": train_sparsity,
                    "budget": budget,
                    "document": current["document"],
                    "layer": layer,
                    "hellinger": float(distances.mean()),
                }
            )

    progress = Progress("fidelity", len(samples["tokens"]))
    with record(model, receive):
        for document, tokens in zip(header["documents"], samples["tokens"].long(), strict=True):
            current["document"] = document
            model(tokens[None].to(args.device), use_cache=False, logits_to_keep=1)
            progress.step()
    save_table(args.out, pd.DataFrame(rows).assign(policy=args.policy, **args.label))
