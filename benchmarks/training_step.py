"""A training step: linear attention on re-ordered keys against masks and S x S attention.

    python -m benchmarks.training_step [--lengths 2048 4096] [--runs 5]

Each way runs in a process of its own, in turn, so that its peak memory is its own: the growth of
the resident set's high-water mark over what the process held before its first step (inputs and,
for ours, prepared features). A step is forward, backward and Adam, batch 1, 9 query
heads on 3 key/value heads of size 64, R = 8, R' = 512, H2O at 2 %. Losses are compared without
dropout before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import released
from pipeline.kernels import LessKernel, get_kernel
from pipeline.policies import budget_tokens, get_policy
from pipeline.training import loss_of, prepare

WAYS = ("released", "released_masks_kept", "ours_float32", "ours_bfloat16")


def peak_mib() -> float:
    """The process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def layer(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random q, k, v and output projection, the same in every process."""
    torch.manual_seed(0)
    heads = (torch.randn(1, count, length, 64) for count in (9, 3, 3))
    return *heads, torch.randn(576, 576) / 24  # type: ignore[return-value]


def step_of(way: str, length: int, kernel: LessKernel) -> Callable[[], torch.Tensor]:
    """A function that computes the loss of the layer in one ``way``."""
    q, k, v, o_weight = layer(length)
    policy = get_policy("h2o", budget_tokens(0.02, length))
    if way.startswith("released"):
        mask = released.visible(q, k, policy) if way == "released_masks_kept" else None
        return lambda: released.loss(q, k, v, o_weight, policy, kernel, mask)
    prepared = prepare(iter([(q, k, v)]), o_weight, policy, "cached")
    return lambda: loss_of(prepared, torch.tensor([0]), kernel)


def measure(way: str, length: int, runs: int) -> dict[str, float]:
    """Loss without dropout, median seconds of a step, and peak memory above the start."""
    dtype = torch.bfloat16 if way == "ours_bfloat16" else torch.float32
    kernel = get_kernel(
        "less", num_heads=9, num_kv_heads=3, head_dim=64, compute_dtype=dtype, dropout=0.3
    )
    assert isinstance(kernel, LessKernel)
    with torch.no_grad():
        kernel.s1.fill_(0.5)  # a state that matters, so that equal losses mean something
        kernel.s2.fill_(0.5)
    forward = step_of(way, length, kernel)
    optimizer = torch.optim.Adam(kernel.parameters())
    before = peak_mib()
    kernel.train()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    memory = peak_mib() - before
    kernel.eval()
    with torch.no_grad():
        fresh = get_kernel("less", num_heads=9, num_kv_heads=3, head_dim=64, compute_dtype=dtype)
        kernel.load_state_dict(fresh.state_dict())
        kernel.s1.fill_(0.5)
        kernel.s2.fill_(0.5)
        loss = float(forward())
    return {"loss": loss, "seconds": statistics.median(seconds), "mib": memory}


def main() -> int:
    """Measure every way at every length, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--runs", type=int, default=5, help="steps of ours; the release takes one")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.lengths[0], args.runs)))
        return 0
    for length in args.lengths:
        found = {}
        for way in WAYS:
            runs = args.runs if way.startswith("ours") else 1
            command = [sys.executable, "-m", "benchmarks.training_step", "--way", way]
            command += ["--lengths", str(length), "--runs", str(runs)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout)
        base = found["released"]
        print(f"{length} tokens, {torch.get_num_threads()} threads")
        print(f"{'':22}{'s a step':>10}{'faster':>9}{'peak MiB':>10}{'less':>8}{'loss':>13}")
        for way, got in found.items():
            faster, less = base["seconds"] / got["seconds"], base["mib"] / got["mib"]
            print(f"{way:22}{got['seconds']:10.3f}{faster:8.1f}x{got['mib']:10.0f}{less:7.1f}x"
                  f"{got['loss']:13.5e}")  # fmt: skip
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
