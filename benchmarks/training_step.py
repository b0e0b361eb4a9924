"""A training step: linear attention on re-ordered keys against masks and S x S attention.

    python -m benchmarks.training_step [--lengths 2048 4096] [--rounds 3]

A step is forward, backward and Adam with dropout, batch 1: 9 query heads on 3 key/value heads of
size 64, R = 8, R' = 512, H2O at 2 %. Steps of all ways take turns in one process. Memory is the
peak of one step in a process of its own, less what was resident before it: inputs, kernels, our
prepared features, given masks. Losses and gradients are compared without dropout; exits with 1 if a
float32 loss is off by more than 1e-3 of it (ours keeps features and targets in half precision).
Of every 8th query, loss and gradient are those of a sample.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from tabulate import tabulate
from torch.nn import functional as F

from benchmarks import released
from benchmarks.machine import describe, peak_mib, times_faster
from pipeline.kernels import LessKernel
from pipeline.measure.timing import interleaved
from pipeline.policies import budget_tokens, get_policy
from pipeline.runtime.machine import limit_threads
from pipeline.training.loop import loss_of
from pipeline.training.prepare import prepare

WAYS = (
    "released", "released, masks given", "ours, float32", "ours, bfloat16",
    "ours, bfloat16, every 8th query",
)  # fmt: skip
HEADS, GROUPS, SIZE = 9, 3, 64
SPARSITY, TOLERANCE = 0.02, 1e-3
STRIDE = 8


def build(
    way: str, length: int, hidden_size: int = 512
) -> tuple[LessKernel, Callable[[], torch.Tensor]]:
    """A kernel and the function that computes its loss; equal inputs and weights in every way."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, length, SIZE).half().float() for n in (HEADS, GROUPS, GROUPS))
    o_weight = torch.randn(HEADS * SIZE, HEADS * SIZE) / (HEADS * SIZE) ** 0.5
    policy = get_policy("h2o", budget_tokens(SPARSITY, length))
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    kernel = LessKernel(HEADS, GROUPS, SIZE, hidden_size=hidden_size, compute_dtype=dtype)
    with torch.no_grad():  # features that matter, or equal losses would say little
        kernel.s1.fill_(0.5)
        kernel.s2.fill_(0.5)
    if way.startswith("ours"):
        prepared = prepare(iter([(q, k, v)]), o_weight, policy, "full")
        stride = STRIDE if way.endswith("query") else 1
        return kernel, lambda: loss_of(prepared, torch.tensor([0]), kernel, 0, stride)
    target = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    seen = None
    if way.endswith("given"):
        seen = released.masks(released.causal_logits(q, k), policy, GROUPS)
    return kernel, lambda: released.loss_of(q, k, v, target, o_weight, policy, kernel, seen)


def training_step(
    kernel: LessKernel, loss: Callable[[], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    """Forward, backward and Adam."""
    optimizer = torch.optim.Adam(kernel.parameters())

    def step() -> torch.Tensor:
        kernel.train()
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def gradient(kernel: LessKernel, loss: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """The loss without dropout and its gradient by all parameters, flat."""
    kernel.eval()
    value = loss()
    value.backward()
    flat = torch.cat([p.grad.flatten() for p in kernel.parameters() if p.grad is not None])
    return float(value.detach()), flat


def compare(length: int, hidden_size: int = 512) -> dict[str, tuple[float, float, float]]:
    """By way: loss, and how far loss and gradient are from the release's, relatively."""
    found = {way: gradient(*build(way, length, hidden_size)) for way in WAYS}
    base, slope = found[WAYS[0]]
    return {
        way: (value, abs(value / base - 1), float((grad - slope).norm() / slope.norm()))
        for way, (value, grad) in found.items()
    }


def peak(way: str, length: int, threads: int) -> float:
    """MiB a step needs beyond what is resident before it."""
    limit_threads(threads)
    training_step(*build(way, 128))()  # load code
    return peak_mib(training_step(*build(way, length)))


def alone(function: Callable[..., float], *arguments: object) -> float:
    """The result of ``function`` in a fresh process that gives freed memory back at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> int:
    """Check, measure and print; 0 if the losses agree."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(describe())
    agree = True
    for length in args.lengths:
        checks = compare(length)
        agree &= checks["ours, float32"][1] <= TOLERANCE
        memory = {way: alone(peak, way, length, torch.get_num_threads()) for way in WAYS}
        steps = {way: training_step(*build(way, length)) for way in WAYS}
        for step in steps.values():
            step()  # warm up
        seconds = interleaved(steps, args.rounds)
        rows = [
            [
                way, f"{statistics.median(seconds[way]):.3f}",
                f"{times_faster(seconds[WAYS[0]], seconds[way]):.1f}",
                f"{times_faster(seconds[WAYS[1]], seconds[way]):.1f}", f"{memory[way]:.0f}",
                f"1/{memory[WAYS[0]] / memory[way]:.1f}", f"{loss:.6f}",
                f"{off:.0e}", f"{slope:.0e}",
            ]
            for way, (loss, off, slope) in checks.items()
        ]  # fmt: skip
        print(f"\n{length} tokens, {args.rounds} rounds")
        head = [
            "", "s a step", "faster", "(masks given)", "peak MiB", "of release",
            "loss", "off by", "gradient off by",
        ]  # fmt: skip
        print(tabulate(rows, head, disable_numparse=True, stralign="right"), flush=True)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
