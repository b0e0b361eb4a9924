"""Train the kernels of some layers, one after the other, each independent of all others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..policies import get_policy
from ..training.faults import ON_HARM
from ..training.layers import Job, train_layers
from ..training.loop import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv train``."""
    parser.add_argument("--features", type=Path, nargs="+", required=True, help="folders of dumps")
    parser.add_argument("--layers", type=int, nargs=2, required=True, metavar=("START", "STOP"))
    parser.add_argument("--policy", required=True)
    parser.add_argument("--budget", type=int, required=True, help="tokens")
    parser.add_argument("--scores", default="cached", help="cached or full")
    parser.add_argument("--kernel", default="less", help="name of a kernel that can be trained")
    parser.add_argument("--sizes", type=json.loads, default={}, help="of the kernel, as JSON")
    parser.add_argument("--recipe", type=json.loads, default={}, help="optimisation, as JSON")
    parser.add_argument(
        "--on-harm",
        default="sparse",
        choices=ON_HARM,
        help="with a layer whose kernel is no better than none: %(choices)s (default: sparse)",
    )
    parser.add_argument("--compute-dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, required=True, help="folder for unfinished layers")
    parser.add_argument("--out", type=Path, required=True, help="kernels")
    parser.add_argument("--curves", type=Path, required=True, help="loss curves (parquet)")


def run(args: argparse.Namespace) -> None:
    """Write kernels of layers START..STOP-1 and one row an epoch and layer of their loss curves."""
    job = Job(
        policy=get_policy(args.policy, args.budget),
        scores=args.scores,
        kernel=args.kernel,
        sizes=args.sizes,
        recipe=Recipe(**args.recipe, seed=args.seed),
        on_harm=args.on_harm,
        compute_dtype=args.compute_dtype,
        device=args.device,
    )
    train_layers(job, args.features, range(*args.layers), args.resume, args.out, args.curves)
