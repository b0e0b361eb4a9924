"""Time a decode step: the library's full caches against Baseline+ and LESS, in one run.

    python benchmarks/decode.py --model SMOLLM2_FOLDER --context 4096 --batch 8 --dtype float32

Caches are filled with random keys and values, since what they hold does not change the time. The
contenders take turns within each round, so that other load on the machine falls on all alike;
printed are medians over rounds, and the medians of the ratios within a round. The breakdown by
part is the paper's Table 8: each part of one layer alone, times the number of layers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from tabulate import tabulate
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache

from pipeline.cache import LessCache, LessLayer
from pipeline.decoding.memory import full_cache_bytes
from pipeline.measure.operators import Kernels, filled, random_token, untrained_kernels
from pipeline.ops.cpu import decode as decode_cpu
from pipeline.ops.packed import PackedKernel, PlainKernel
from pipeline.policies import Policy, get_policy, state_tokens
from pipeline.runtime.machine import limit_threads
from pipeline.transformer.interface import enable
from pipeline.transformer.shape import model_shape
from pipeline.transformer.weights import load_model

Step = Callable[[], object]


def random_pairs(model: PreTrainedModel, batch: int, length: int) -> tuple[torch.Tensor, ...]:
    """Keys and values (B, G, length, D) of the model's type."""
    shape = model_shape(model.config)
    pairs = torch.randn(2, batch, shape.num_kv_heads, length, shape.head_dim).to(model.dtype)
    return pairs[0], pairs[1]


def filled_full(model: PreTrainedModel, cache: Cache, batch: int, context: int) -> Cache:
    """A cache of the library that holds ``context`` tokens."""
    for layer in range(model.config.num_hidden_layers):
        cache.update(*random_pairs(model, batch, context), layer)
    return cache


def filled_less(model: PreTrainedModel, cache: LessCache, batch: int, context: int) -> LessCache:
    """A bounded cache as it is after ``context`` tokens: every slot taken."""
    return filled(cache, batch, context, random_token(model, batch)[1])


def time_rounds(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each step in each round; the first two rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number >= 2:
                times[name].append((time.perf_counter() - started) * 1e3)
    return times


def model_steps(
    full: PreTrainedModel, less: PreTrainedModel, policy: Policy, plus: Policy,
    kernels: Kernels, batch: int, context: int, rounds: int,
) -> dict[str, Step]:  # fmt: skip
    """One decode step of the whole model with each cache."""
    room = context + rounds + 8
    caches = {
        "full (dynamic)": (full, filled_full(full, DynamicCache(), batch, context)),
        "full (static)": (
            full,
            filled_full(full, StaticCache(full.config, max_cache_len=room), batch, context),
        ),
        "baseline": (less, filled_less(less, LessCache(less.config, policy), batch, context)),
        "baseline+": (less, filled_less(less, LessCache(less.config, plus), batch, context)),
        "LESS": (less, filled_less(less, LessCache(less.config, policy, kernels), batch, context)),
    }
    ids = torch.randint(0, full.config.vocab_size, (batch, 1))

    def step(model: PreTrainedModel, cache: Cache) -> Step:
        def run() -> None:
            position = torch.full((batch, 1), int(cache.get_seq_length()))
            model(ids, past_key_values=cache, position_ids=position)

        return run

    return {name: step(*pair) for name, pair in caches.items()}


def attention_steps(
    model: PreTrainedModel,
    policy: Policy,
    plus: Policy,
    kernel: PackedKernel | PlainKernel,
    batch: int,
    context: int,
) -> dict[str, Step]:
    """The attention of one layer alone, cache update included, without projections."""
    q, k, v = random_token(model, batch)
    keys, values = random_pairs(model, batch, context)

    def full() -> None:
        keys[:, :, -1:], values[:, :, -1:] = k, v
        torch.nn.functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)

    def bounded(policy: Policy, kernels: Kernels | None) -> Step:
        cache = filled_less(model, LessCache(model.config, policy, kernels), batch, context)
        layer = cache.layers[0]
        return lambda: layer.attend(q, *layer.update(k, v), None)

    layers = model.config.num_hidden_layers
    return {
        "full, in place": full,
        "baseline+": bounded(plus, None),
        "LESS": bounded(policy, [kernel] * layers),
    }


def part_steps(
    model: PreTrainedModel,
    policy: Policy,
    kernel: PackedKernel | PlainKernel,
    batch: int,
    context: int,
) -> dict[str, Step]:
    """Nested parts of one layer's LESS step; what a part costs is a difference (:func:`parts`)."""
    cache = LessCache(model.config, policy, [kernel] * model.config.num_hidden_layers)
    layer: LessLayer = filled_less(model, cache, batch, context).layers[0]  # type: ignore[assignment]
    scoreless = replace(policy, recent=policy.budget, heavy=0)
    bare: LessLayer = filled_less(model, LessCache(model.config, scoreless), batch, context).layers[
        0
    ]  # type: ignore[assignment]
    ops = decode_cpu
    q, k, v = random_token(model, batch)
    position = torch.full((batch,), context, dtype=torch.int32)
    early = torch.zeros_like(position)
    decoded = ops.decode(layer.slots, q, k, v, position, policy)
    kept = replace(decoded, positions=torch.full_like(decoded.positions, -1))
    assert isinstance(layer.kernel, PackedKernel)

    def correct(decoded: decode_cpu.Read, position: torch.Tensor) -> Step:
        return lambda: ops.correct(decoded, q, layer.kernel, layer.state, position, policy)

    return {
        "attention": lambda: ops.decode(bare.slots, q, k, v, position, scoreless),
        "attention, eviction": lambda: ops.decode(layer.slots, q, k, v, position, policy),
        "neither": correct(kept, early),
        "phi": correct(kept, position),
        "psi": correct(decoded, early),
    }


def parts(medians: dict[str, float], layers: int, step: float) -> dict[str, float]:
    """Milliseconds a decode step spends in each part, over all layers."""
    one = {
        "attention": medians["attention"],
        "eviction": medians["attention, eviction"] - medians["attention"],
        "phi, synthesis": medians["phi"] - medians["neither"],
        "psi, state update": medians["psi"] - medians["neither"],
        "call of the low-rank part": medians["neither"],
    }
    table = {name: max(value, 0.0) * layers for name, value in one.items()}
    return {**table, "rest of the model": step - sum(table.values()), "decode step": step}


def medians_of(times: dict[str, list[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times: dict[str, list[float]], name: str, other: str) -> float:
    """Median over rounds of one contender's time over another's."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def main() -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--context", type=int, default=4096, help="tokens already read")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--sparsity", type=float, default=0.1, help="budget as a share of context")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    limit_threads(args.threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, args.dtype)
    full, less = load_model(args.model, dtype), load_model(args.model, dtype)
    less.load_state_dict(full.state_dict(), assign=True)  # one copy of the weights for both
    less.tie_weights()
    enable(less)
    budget = int(args.sparsity * args.context) // 2 * 2
    policy = get_policy(args.policy, budget)
    plus = get_policy(args.policy, budget + state_tokens(8))
    kernels = untrained_kernels("less", less)

    steps = model_steps(full, less, policy, plus, kernels, args.batch, args.context, args.rounds)
    times = time_rounds(steps, args.rounds)
    medians = medians_of(times)
    best = min(("full (dynamic)", "full (static)"), key=lambda name: medians[name])
    rows = [
        [name, ms, ratio(times, name, best), ratio(times, name, "baseline+")]
        for name, ms in medians.items()
    ]
    print(
        f"{args.model}, {args.dtype}, {args.policy} {budget} of {args.context} tokens, "
        f"batch {args.batch}, {args.threads} threads, {args.rounds} rounds"
    )
    print(tabulate(rows, ["decode step", "ms", "/ faster full", "/ baseline+"], floatfmt=".3f"))
    held = LessCache(less.config, policy, kernels)
    held = filled_less(less, held, args.batch, args.context).memory()
    whole = full_cache_bytes(full.config, args.batch, args.context, dtype)
    print(f"\ncache: {sum(held.values()) / 2**20:.1f} MiB {held}, full {whole / 2**20:.1f} MiB\n")
    del steps

    alone = time_rounds(
        attention_steps(less, policy, plus, kernels[0], args.batch, args.context), 5 * args.rounds
    )
    rows = [
        [name, ms, ratio(alone, name, "full, in place"), ratio(alone, name, "baseline+")]
        for name, ms in medians_of(alone).items()
    ]
    print(tabulate(rows, ["one layer's attention", "ms", "/ full", "/ baseline+"], floatfmt=".3f"))

    one = time_rounds(
        part_steps(less, policy, kernels[0], args.batch, args.context), 5 * args.rounds
    )
    step = medians["LESS"]
    split = parts(medians_of(one), less.config.num_hidden_layers, step)
    rows = [[name, ms, 100 * ms / step] for name, ms in split.items()]
    print()
    print(tabulate(rows, ["part of a LESS step (Table 8)", "ms", "%"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
