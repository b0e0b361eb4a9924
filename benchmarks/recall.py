"""Where a policy's loss is and how much of it the low-rank state wins back: new words or repeated.

    python -m benchmarks.recall --model FOLDER --samples FILE --kernels FILE --budget 40

Each token behind the budget is of one kind: `new` (it did not occur before in its window), `seen`
(it did, but not after the token before it) or `copied` (the pair of both occurred before). What is
copied can be predicted by looking up one distant pair, which a state of a few numbers cannot hold;
what is new depends on the gist of the text. Windows come from `less-kv sample`. Losses are
teacher-forced, the same tokens for every method; intervals are bootstrapped over windows.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from pipeline.attention import attach
from pipeline.policies import get_policy
from pipeline.report.statistics import estimate, resamples
from pipeline.runtime.machine import limit_threads
from pipeline.runtime.progress import Progress
from pipeline.storage.tensors import load_tensors
from pipeline.training.checkpoint import load_kernels
from pipeline.transformer.shape import model_shape
from pipeline.transformer.weights import load_model

KINDS = ["new", "seen", "copied"]


def kinds(tokens: list[int]) -> list[str]:
    """The kind of each token but the first."""
    before: set[int] = set()
    pairs: set[tuple[int, int]] = set()
    found = []
    for left, right in pairwise(tokens):
        before.add(left)
        pair = (left, right)
        found.append("copied" if pair in pairs else "seen" if right in before else "new")
        pairs.add(pair)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--kernels", type=Path, required=True)
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--budget", type=int, required=True, help="tokens")
    parser.add_argument("--scores", default="cached")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    limit_threads(args.threads)
    model = load_model(args.model, args.dtype)
    shape = model_shape(model.config)
    heads = shape.heads
    kernels = load_kernels(args.kernels, heads, shape.num_layers, model.dtype)
    policy = get_policy(args.policy, args.budget)
    ways = {
        "full": nullcontext,
        "baseline": lambda: attach(model, policy, None, args.scores),
        "less": lambda: attach(model, policy, kernels, args.scores),
    }
    tokens = load_tensors(args.samples, "samples")[0]["tokens"].long()
    sums = {name: np.zeros((len(KINDS), len(tokens))) for name in ways}
    counts = np.zeros((len(KINDS), len(tokens)))
    progress = Progress("recall", len(tokens))
    for window, row in enumerate(tokens):
        kind = np.array(kinds(row.tolist()))[args.budget :]
        counts[:, window] = [(kind == name).sum() for name in KINDS]
        for name, way in ways.items():
            with torch.inference_mode(), way():
                logits = model(row[None], use_cache=False).logits[0, args.budget : -1]
                loss = torch.nn.functional.cross_entropy(
                    logits.float(), row[args.budget + 1 :], reduction="none"
                ).numpy()
            sums[name][:, window] = [loss[kind == each].sum() for each in KINDS]
        progress.step()
    draws = resamples(len(tokens), count=2000, seed=0)
    whole = (sums["baseline"] - sums["full"]).sum()
    rows = []
    for place, name in enumerate([*KINDS, "all"]):
        pick = slice(None) if name == "all" else slice(place, place + 1)
        full, baseline, less = (sums[way][pick].sum(0) for way in ways)
        share = estimate(
            lambda a, b, c: (b.sum(-1) - c.sum(-1)) / (b.sum(-1) - a.sum(-1)),
            full, baseline, less, draws=draws,
        )  # fmt: skip
        count = counts[pick].sum()
        rows.append(
            [
                name, f"{count / counts.sum():.0%}", f"{full.sum() / count:.3f}",
                f"{(baseline - full).sum() / count:.3f}", f"{(baseline - full).sum() / whole:.0%}",
                f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]",
            ]
        )  # fmt: skip
    print(f"{args.samples.name}: {len(tokens)} windows, {args.policy} {args.budget} tokens")
    headers = ["tokens", "share", "full, nats", "lost, nats", "share of the loss", "won back"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
