"""Eviction scan and sparse attention of a layer: compiled pass against mask-based reference.

    python -m benchmarks.eviction [--length 2048] [--sparsity 0.02] [--policy h2o] [--rounds 5]

9 query heads on 3 key/value heads of size 64, scores over what is cached. Both run in turn in one
process. Exits with 1 if eviction times differ or outputs differ by more than 1e-5.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from tabulate import tabulate

from benchmarks.machine import describe, times_faster
from pipeline.eviction import evict_and_attend
from pipeline.measure.timing import interleaved
from pipeline.ops.reference import sequence as reference
from pipeline.ops.times import by_index_set
from pipeline.policies import budget_tokens, get_policy


def main() -> int:
    """Check and measure; 0 if both agree."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--sparsity", type=float, default=0.02)
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, args.length, 64) for heads in (9, 3, 3))
    policy = get_policy(args.policy, budget_tokens(args.sparsity, args.length))
    units, keys = by_index_set(q, k, policy)
    ways = {
        "mask-based reference": lambda: reference.bounded_attention(
            units, keys, v.view(keys.shape), policy
        ),
        "compiled pass": lambda: evict_and_attend(q, k, v, policy),
    }
    expected, actual = (way() for way in ways.values())
    same = torch.equal(expected[0], actual[0].view(-1, args.length)[: len(units)])
    error = float((expected[1].view(q.shape) - actual[1]).abs().max())
    seconds = interleaved(ways, args.rounds)
    slow = seconds["mask-based reference"]
    print(describe())
    print(f"{args.policy}, budget {policy.budget}, {args.length} tokens, {args.rounds} rounds\n")
    rows = [
        [name, f"{1e3 * statistics.median(s):.1f}", f"{times_faster(slow, s):.1f}"]
        for name, s in seconds.items()
    ]
    print(tabulate(rows, ["", "ms", "times faster"], disable_numparse=True, stralign="right"))
    print(f"\neviction times equal: {same}; largest difference of outputs: {error:.1e}")
    return 0 if same and error <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
