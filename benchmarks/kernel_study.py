"""What limits the kernels of a layer: the recipe, its text, or the size of the state.

    python -m benchmarks.kernel_study --train FEATURES --layer 12 --budget 40 \
        --recipes '{}' '{"epochs": 24, "halve_every": 8}' --kernel-sizes 8 32 [--test FEATURES]

Trains the kernels of one layer on the windows of a dump (`less-kv dump`) once for each setting, and
prints what is left of the sparse policy's loss (the layer's mean squared error after its output
projection) on held-out windows of the same dump and on every window of others.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice, product
from pathlib import Path

import torch
from tabulate import tabulate

from pipeline.kernels import LessKernel, get_kernel
from pipeline.policies import get_policy
from pipeline.runtime.machine import limit_threads
from pipeline.storage.features import layer_file, read_sequences
from pipeline.storage.tensors import open_tensors
from pipeline.training.loop import Recipe, evaluate, split, train_layer
from pipeline.training.prepare import Prepared, prepare

SHORT = {"epochs": 6, "batch_size": 1, "learning_rate": 3e-3, "halve_every": 2}
"""A recipe for two cores; its other settings are the paper's."""


def prepared(folder: Path, args: argparse.Namespace, windows: int | None) -> Prepared:
    """A layer of a dump, its first ``windows`` windows."""
    policy = get_policy(args.policy, args.budget)
    with open_tensors(layer_file(folder, args.layer), "features") as (handle, _):
        weight = handle.get_tensor("o_weight")
        return prepare(islice(read_sequences(handle, "cpu"), windows), weight, policy, args.scores)


def share(data: Prepared, indices: list[int], kernel: LessKernel) -> float:
    """Loss with the kernel over loss without."""
    return evaluate(data, indices, kernel) / evaluate(data, indices, None)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="folder of a dump")
    parser.add_argument("--test", type=Path, nargs="*", default=[], help="folders of other dumps")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--budget", type=int, required=True, help="tokens")
    parser.add_argument("--scores", default="cached")
    parser.add_argument("--windows", type=int, help="of the training dump; all by default")
    parser.add_argument(
        "--recipes", type=json.loads, nargs="+", default=[{}],
        help=f"as JSON, each a change of {json.dumps(SHORT)}",
    )  # fmt: skip
    parser.add_argument("--kernel-sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--dtype", default="bfloat16", help="compute type of the kernels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    limit_threads(args.threads)
    train = prepared(args.train, args, args.windows)
    tests = [prepared(folder, args, None) for folder in args.test]
    rows = []
    for change, size in product(args.recipes, args.kernel_sizes):
        recipe = Recipe(**SHORT | change)
        kernel = get_kernel(
            "less", num_heads=train.q.shape[1], num_kv_heads=train.k.shape[1],
            head_dim=train.q.shape[3], kernel_size=size, seed=args.layer,
            compute_dtype=getattr(torch, args.dtype),
        )  # fmt: skip
        assert isinstance(kernel, LessKernel)
        started = time.monotonic()
        train_layer(train, kernel, recipe)
        seconds = time.monotonic() - started
        held_out = split(len(train), recipe.validation, recipe.seed)[1]
        found = [share(train, held_out, kernel)]
        found += [share(test, list(range(len(test))), kernel) for test in tests]
        rows.append([json.dumps(change), size, f"{seconds:.1f}", *(f"{x:.3f}" for x in found)])
    print(f"layer {args.layer}, {args.policy} {args.budget} tokens, {len(train)} windows")
    head = ["recipe", "R", "s", "held out", *(folder.name for folder in args.test)]
    print(tabulate(rows, head, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
