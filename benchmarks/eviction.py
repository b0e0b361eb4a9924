"""Eviction scan and sparse attention of a layer: compiled pass against mask-based reference.

    python benchmarks/eviction.py [--length 2048] [--sparsity 0.02] [--runs 5]

Both run in turn in one process; the medians' ratio is what counts. Exits with 1 if they disagree.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from pipeline.ops import by_index_set, cpu, reference
from pipeline.policies import budget_tokens, get_policy


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the function returned."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--sparsity", type=float, default=0.02)
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    q = torch.randn(1, 9, args.length, 64)
    k, v = torch.randn(1, 3, args.length, 64), torch.randn(1, 3, args.length, 64)
    policy = get_policy(args.policy, budget_tokens(args.sparsity, args.length))
    units, keys = by_index_set(q, k, policy)
    values = v.view(keys.shape)
    cpu.bounded_attention(units, keys, values, policy)  # compile
    ours: list[float] = []
    masks: list[float] = []
    for _ in range(args.runs):
        seconds, mine = timed(lambda: cpu.bounded_attention(units, keys, values, policy))
        ours.append(seconds)
        seconds, truth = timed(lambda: reference.bounded_attention(units, keys, values, policy))
        masks.append(seconds)
    same = bool((mine[0] == truth[0]).all())
    error = float((mine[1] - truth[1]).abs().max())
    a, b = statistics.median(ours), statistics.median(masks)
    print(f"{args.policy}, budget {policy.budget}, 9 heads on 3, {args.length} tokens, "
          f"{torch.get_num_threads()} threads, median of {args.runs}")  # fmt: skip
    print(f"mask-based reference  {1e3 * b:9.1f} ms")
    print(f"compiled scan         {1e3 * a:9.1f} ms   {b / a:.0f} times faster")
    print(f"eviction times equal: {same}; largest difference of outputs: {error:.1e}")
    return 0 if same and error < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
