"""Train the kernels of some layers, one after the other, each independent of all others."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..errors import ConfigError
from ..kernels import LessKernel, get_kernel
from ..policies import get_policy
from ..runtime.code import code_of
from ..runtime.machine import machine
from ..runtime.progress import rate
from ..storage.features import find_features, read_sequences
from ..storage.files import save_table
from ..storage.tensors import checksum_of, open_tensors
from ..training.checkpoint import Heads, save_kernels
from ..training.faults import ON_HARM, Fault
from ..training.loop import Epoch, Recipe, evaluate, split, train_layer
from ..training.prepare import prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less-kv train``."""
    parser.add_argument("--features", type=Path, nargs="+", required=True, help="folders of dumps")
    parser.add_argument("--layers", type=int, nargs=2, required=True, metavar=("START", "STOP"))
    parser.add_argument("--policy", required=True)
    parser.add_argument("--budget", type=int, required=True, help="tokens")
    parser.add_argument("--scores", default="cached", help="cached or full")
    parser.add_argument("--kernel", type=json.loads, default={}, help="sizes, as JSON")
    parser.add_argument("--recipe", type=json.loads, default={}, help="optimisation, as JSON")
    parser.add_argument(
        "--on-harm", default="sparse", choices=ON_HARM,
        help="with a layer whose kernel is no better than none: %(choices)s (default: sparse)",
    )  # fmt: skip
    parser.add_argument("--compute-dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, required=True, help="folder for unfinished layers")
    parser.add_argument("--out", type=Path, required=True, help="kernels")
    parser.add_argument("--curves", type=Path, required=True, help="loss curves (parquet)")


def run(args: argparse.Namespace) -> None:
    """Write kernels of layers START..STOP-1 and one row an epoch and layer of their loss curves."""
    policy = get_policy(args.policy, args.budget)
    recipe = Recipe(**args.recipe, seed=args.seed)
    compute_dtype = getattr(torch, args.compute_dtype)
    wanted = {"policy": asdict(policy), "scores": args.scores, "recipe": asdict(recipe)}
    kernels: dict[int, LessKernel] = {}
    curves: list[dict[str, Any]] = []
    losses: dict[str, dict[str, Any]] = {}
    for layer in range(*args.layers):
        path = find_features(args.features, layer)
        with open_tensors(path, "features", path.parent) as (handle, header):
            heads = Heads(
                handle.get_slice("q").get_shape()[1],
                handle.get_slice("k").get_shape()[1],
                handle.get_slice("q").get_shape()[3],
            )
            content = checksum_of(handle)
            prepared = prepare(
                read_sequences(handle, args.device),  # type: ignore[arg-type]
                handle.get_tensor("o_weight").to(args.device), policy, args.scores,
            )  # fmt: skip
        kernel = get_kernel(
            "less", **vars(heads), **args.kernel, seed=args.seed * 1009 + layer,
            compute_dtype=compute_dtype,
        ).to(args.device)  # fmt: skip
        if not isinstance(kernel, LessKernel):
            raise ConfigError("only trainable kernels can be trained.")
        if not kernels:
            print(f"train: layers {args.layers} on {machine()}", file=sys.stderr, flush=True)
        training, held_out = split(len(prepared), recipe.validation, recipe.seed)
        sparse = evaluate(prepared, held_out, None)

        def report(
            epoch: Epoch, layer: int = layer, sparse: float = sparse, count: int = len(training)
        ) -> None:
            step = epoch.epoch * -(-count // recipe.batch_size)
            speed = f", {rate(count, epoch.seconds)} sequences" if step else ""
            print(
                f"layer {layer} (of {args.layers[0]}..{args.layers[1] - 1}) "
                f"epoch {epoch.epoch}/{recipe.epochs}, step {step}: loss {epoch.train_loss:.3e}, "
                f"validation {epoch.validation_loss:.3e} "
                f"({epoch.validation_loss / sparse:.3f} of sparse){speed}",
                file=sys.stderr, flush=True,
            )  # fmt: skip

        matters = [wanted, header, content, args.kernel, args.compute_dtype, code_of("train")]
        identity = json.dumps(matters, sort_keys=True)
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        state = args.resume / f"layer{layer:03d}-{key}.safetensors"
        curve = train_layer(prepared, kernel, recipe, state, report)
        fault = Fault.of(curve, sparse)
        if fault is not None:
            print(f"layer {layer} {fault.what}", file=sys.stderr)
        if fault is not None and fault.harmful:
            ON_HARM[args.on_harm](kernel, f"layer {layer} {fault.what}")
        kernels[layer] = kernel.cpu()
        about = {
            "layer": layer,
            "sparse_loss": sparse,
            "fault": fault and fault.what,
            "became": args.on_harm if fault is not None and fault.harmful else None,
        }
        curves += [about | asdict(epoch) for epoch in curve]
        finite = [e.validation_loss for e in curve if e.finite]
        losses[str(layer)] = {
            "sparse": sparse if math.isfinite(sparse) else None,
            "best": min(finite, default=None),
            "fault": fault and fault.what,
        }
        del prepared  # before the next layer's are made
    save_table(args.curves, pd.DataFrame(curves).drop(columns="seconds"))
    save_kernels(args.out, kernels, heads, args.kernel, losses=losses, **wanted)
    shutil.rmtree(args.resume, ignore_errors=True)
