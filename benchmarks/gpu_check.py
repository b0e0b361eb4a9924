"""Check the Triton operators on the GPU at hand: tests, times, and whole decode steps.

    make gpu-check

Times are medians of many runs. Beside them stand the bytes that an operator must move at the least
(inputs read once, outputs written once) and how fast that is as a share of this GPU's own copying,
and the operations of the plain formula. Shapes are those of a layer of Llama 2 7B at 10 % of 4096.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from tabulate import tabulate
from transformers import PreTrainedModel

from pipeline.experiment.latency import Contender, Setting
from pipeline.kernels import get_kernel
from pipeline.measure.latency import Bench, by_engine, name_of, peak_bytes, within_memory
from pipeline.measure.operators import Operator, copy_bandwidth, untrained_kernels
from pipeline.ops.gpu import linear as gpu_linear
from pipeline.ops.gpu import sequence as gpu_sequence
from pipeline.ops.low_rank import LowRankState
from pipeline.ops.packed import PackedKernel
from pipeline.ops.slots import Slots
from pipeline.policies import Policy, get_policy
from pipeline.transformer.interface import enable
from pipeline.transformer.weights import load_model

GRAPHS = "tests/decoding/test_engine.py::test_replayed_graphs_equal_generate"
TESTS = ["tests/ops/gpu", GRAPHS, "-k", "not test_kernels_compile"]
"""What pytest runs: all but the compilation for a GPU that is not there."""
TEST_SECONDS = 330
"""After which the tests are given up, so that the whole check takes less than nine minutes."""


@dataclass(frozen=True)
class Sizes:
    """A layer: batch B, heads H and G, head size D, R, R', budget C, sequence length S."""

    batch: int = 8
    heads: int = 32
    groups: int = 32
    size: int = 128
    rank: int = 8
    hidden: int = 512
    budget: int = 408
    length: int = 4096
    dtype: torch.dtype = torch.float16


def filled(sizes: Sizes, policy: Policy, device: str) -> Slots:
    """Slots as they are after a whole sequence."""
    like = torch.empty(
        sizes.batch, sizes.groups, 1, sizes.size, dtype=sizes.dtype, device=device
    )  # fmt: skip
    slots = Slots.empty(like, policy)
    slots.keys.normal_()
    slots.values.normal_()
    start = sizes.length - policy.budget
    slots.positions[..., :-1] = torch.arange(start, sizes.length, device=device)
    slots.scores.uniform_()
    slots.free.fill_(policy.budget)
    return slots


def decode_operators(sizes: Sizes, device: str) -> list[Operator]:
    """A decode step: maps of its queries and keys, the sparse policies alone, LESS."""
    from pipeline.ops.gpu import decode as decoding
    from pipeline.ops.gpu import maps

    b, h, g, d, r = sizes.batch, sizes.heads, sizes.groups, sizes.size, sizes.rank
    kernel = PackedKernel(
        get_kernel(
            "less", num_heads=h, num_kv_heads=g, head_dim=d, kernel_size=r,
            hidden_size=sizes.hidden, compute_dtype=sizes.dtype,
        ).to(device)
    )  # fmt: skip
    q = torch.randn(b, h, 1, d, device=device).to(sizes.dtype)
    k, v = torch.randn(2, b, g, 1, d, device=device).to(sizes.dtype)
    position = torch.full((b,), sizes.length, dtype=torch.int32, device=device)
    state = LowRankState.zeros(b, g, r, d, device)
    kept = torch.rand(b, g, sizes.budget + 1, r, device=device)
    weights = sum(w.nbytes for w in (kernel.w1, kernel.w2, kernel.last))
    mapping = 2 * b * (h + g) * sizes.hidden * (d + r)
    attention = 4 * b * h * (sizes.budget + 1) * d
    found = [
        Operator(
            "maps", lambda: maps.features(kernel, q, k), weights + q.nbytes + k.nbytes, mapping
        )
    ]
    for name in ("h2o", "lambda", "tova"):
        policy = get_policy(name, sizes.budget)
        slots = filled(sizes, policy, device)
        # Keys, values and positions are read; scores are read and written.
        moved = slots.keys.nbytes + slots.values.nbytes + slots.positions.nbytes
        moved += 2 * slots.scores.nbytes
        memory = 2 * (state.H.nbytes + state.z.nbytes)

        def sparse(slots: Slots = slots, policy: Policy = policy) -> object:
            return decoding.decode(slots, q, k, v, position, policy)

        def less(slots: Slots = slots, policy: Policy = policy) -> object:
            return decoding.step(slots, kept, state, q, k, v, kernel, position, policy)

        found += [
            Operator(f"decode, {name}", sparse, moved, attention),
            Operator(
                f"decode, {name} + LESS", less, moved + memory + weights,
                attention + mapping + 4 * b * h * r * d,
            ),
        ]  # fmt: skip
    return found


def sequence_operators(sizes: Sizes, device: str) -> list[Operator]:
    """Over one sequence: eviction, sparse attention, linear attention and its gradients."""

    h, g, s, d, r = sizes.heads, sizes.groups, sizes.length, sizes.size, sizes.rank
    q = torch.randn(g, 1, h // g, s, d, device=device).to(sizes.dtype)
    k, v = torch.randn(2, g, 1, s, d, device=device).to(sizes.dtype)
    policy = get_policy("h2o", sizes.budget)
    times = gpu_sequence.evict(q, k, policy, "cached")
    phi, psi = (torch.rand(1, n, s, r, device=device, requires_grad=True) for n in (h, g))
    value = v.view(1, g, s, d).float()
    visible = 4 * h * s * sizes.budget * d
    inputs = q.nbytes + k.nbytes
    tensors = inputs + v.nbytes + 4 * q.numel()
    linear = 4 * (phi.numel() + psi.numel() + value.numel() + h * s * d)
    work = 4 * h * s * r * d

    def both_ways() -> None:
        numerator, denominator = gpu_linear.linear_attention(phi, psi, value)
        torch.autograd.grad(numerator.sum() + denominator.sum(), (phi, psi))

    def one_way() -> object:
        return gpu_linear.linear_attention(phi.detach(), psi.detach(), value)

    found: dict[str, tuple[Callable[[], object], int, int]] = {
        "evict, cached": (
            lambda: gpu_sequence.bounded_attention(q, k, v, policy),
            tensors,
            visible,
        ),
        "evict, full": (lambda: gpu_sequence.evict(q, k, policy, "full"), inputs, h * s * s * d),
        "sparse attention": (
            lambda: gpu_sequence.sparse_attention(q, k, v, times),
            tensors,
            visible,
        ),
        "linear attention": (one_way, linear, work),
        "linear attention and gradients": (both_ways, 3 * linear, 3 * work),
    }
    return [Operator(name, *parts) for name, parts in found.items()]


def table(operators: list[Operator], bandwidth: float) -> str:
    """Each operator's time and what it amounts to."""
    from triton.testing import do_bench

    lines = []
    for operator in operators:
        seconds = float(do_bench(operator.run, return_mode="median")) * 1e-3
        lines.append(
            [
                operator.name, operator.moved / 2**20, operator.operations / 1e9, seconds * 1e6,
                operator.moved / seconds / bandwidth, operator.operations / seconds / 1e12,
            ]
        )  # fmt: skip
    headers = ["operator", "MiB moved", "G operations", "µs", "of copying", "T operations/s"]
    return tabulate(lines, headers, floatfmt=(None, ".1f", ".2f", ".1f", ".0%", ".2f"))


LLAMA = {
    "random": {
        "architecture": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32000,
    }
}  # fmt: skip
"""The shape of Llama 2 7B."""
MIDDLE = Setting(3072, 64, 24)
"""A piece of the paper's 2048+2048 x 24 at its mean length."""


def steps(model: PreTrainedModel, setting: Setting, budget: int) -> str:
    """Whole decode steps by the engine, H2O: time, what it is to the others', peak memory."""
    size = (setting.batch, setting.prompt)
    prompt = torch.randint(0, model.config.vocab_size, size).to(model.device)
    kernels = {"less": partial(untrained_kernels, "less", model)}
    bench = Bench(model, setting, prompt, kernels)
    contenders = [
        Contender("full"), Contender("baseline_plus", "h2o", 0.05, budget + 4),
        Contender("less", "h2o", 0.05, budget),
    ]  # fmt: skip
    lines, times = [], {}
    for contender in contenders:
        found = within_memory(lambda: by_engine(bench, contender), model.device)  # noqa: B023
        times[contender.method] = seconds = found["step_seconds"] if found else math.nan
        others = [times[other] / seconds for other in ("full", "baseline_plus") if other in times]
        peak = peak_bytes(model.device) / 2**30
        lines.append([name_of(contender), seconds * 1e3, *others, *[""] * (2 - len(others)), peak])
    headers = [f"decode step, {setting.name}", "ms", "full / it", "baseline+ / it", "peak GiB"]
    return tabulate(lines, headers, floatfmt=".3f")


def main() -> int:
    """Tests, then the table; 1 without a GPU, or where a test fails."""
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU, and torch finds none here.", file=sys.stderr)
        return 1
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", *TESTS]
    try:
        code = subprocess.run(command, env=environment, timeout=TEST_SECONDS).returncode
    except subprocess.TimeoutExpired:
        print(f"the tests did not end within {TEST_SECONDS} seconds.", file=sys.stderr)
        return 1
    sizes = Sizes()
    bandwidth = copy_bandwidth(torch.device("cuda"))
    print(f"{torch.cuda.get_device_name()}, copying {bandwidth / 1e9:.0f} GB/s; {sizes}")
    print(table(decode_operators(sizes, "cuda") + sequence_operators(sizes, "cuda"), bandwidth))
    with torch.no_grad():
        print(steps(enable(load_model(LLAMA, sizes.dtype, "cuda")), MIDDLE, budget=204))
    return code


if __name__ == "__main__":
    sys.exit(main())
