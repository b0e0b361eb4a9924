"""Compiled loops give the same bits in the process that compiles them and in those that load them.

Half precision turns a last bit into another token, so results would otherwise depend on whether
the cache of compiled code was cold.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ops.cpu import sums as vector
from pipeline.ops.cpu.maps import as_bits
from pipeline.ops.cpu.products import product

RUN = """
import hashlib, torch
from pipeline.eviction import evict_and_attend
from pipeline.kernels import get_kernel
from pipeline.ops.packed import pack
from pipeline.ops.cpu import decode as decode_cpu
from pipeline.ops.low_rank import LowRankState
from pipeline.policies import get_policy
from pipeline.ops.slots import Slots
policy = get_policy("h2o", 46)
seed = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(2, heads, 150, 64, generator=seed) for heads in (6, 2, 2))
found = [*evict_and_attend(q, k, v, policy)]
for dtype in (torch.bfloat16, torch.float16):
    slots = Slots.empty(k.to(dtype), policy)
    position = torch.zeros(2, dtype=torch.int32)
    read = decode_cpu.decode(slots, q.to(dtype), k.to(dtype), v.to(dtype), position, policy)
    found += [read.out.clone(), read.lse, slots.scores]
    kernel = get_kernel("less", num_heads=6, num_kv_heads=2, head_dim=64, compute_dtype=dtype)
    torch.nn.init.ones_(kernel.s1)
    state = LowRankState.zeros(2, 2, 8, 64, torch.device("cpu"))
    token, position = [x[:, :, :1].to(dtype) for x in (q, k, v)], position + 150
    last = decode_cpu.decode(slots, *token, position, policy)
    for _ in range(2):  # what the second reads, the first absorbed
        out = decode_cpu.correct(last, token[0], pack(kernel), state, position, policy)
    found += [out, state.H, state.z]
for x in found:
    print(hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest())
"""


def test_cold_and_warm_processes_agree_to_the_last_bit(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    cold, warm = (
        subprocess.run(
            [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert len(cold.split()) == 15
    assert cold == warm


@given(size=st.integers(0, 300), seed=st.integers(0, 99))
def test_dot_sums_products_of_any_length(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((3, max(size, 1)), dtype=np.float32)
    b = generator.standard_normal(max(size, 1), dtype=np.float32)
    expected = rows[2, :size].astype(np.float64) @ b[:size].astype(np.float64)
    assert vector.dot(rows, 2, b, size) == pytest.approx(expected, abs=1e-4)


def test_dot_refuses_what_it_would_misread() -> None:
    rows = np.zeros((2, 8), np.float32)
    with pytest.raises(Exception, match="contiguous float32"):
        vector.dot(rows.astype(np.float64), 0, rows[0], 8)
    with pytest.raises(Exception, match="contiguous float32"):
        vector.dot(rows, 0, rows[:, 0], 2)


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = torch.linspace(-87, 0, 1001)
    mine = torch.tensor([float(vector.exp(np.float32(value))) for value in x.tolist()])
    torch.testing.assert_close(mine, x.double().exp().float(), rtol=3e-7, atol=0)


def test_gelu_is_that_of_torch() -> None:
    x = torch.linspace(-12, 12, 2001)
    mine = torch.tensor([float(vector.gelu(np.float32(value))) for value in x.tolist()])
    torch.testing.assert_close(mine, torch.nn.functional.gelu(x), rtol=1e-6, atol=1e-6)


@given(
    count=st.integers(0, 19),
    size=st.integers(1, 70),
    width=st.integers(1, 90),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_product_is_a_matrix_product_of_any_shape(
    count: int, size: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, size, generator=generator)
    w = torch.randn(size, width, generator=generator).to(dtype)
    out = torch.full((20, width), 7.0)
    product(x.numpy(), as_bits(w), count, out.numpy())
    torch.testing.assert_close(out[:count], x[:count] @ w.float(), atol=1e-4, rtol=1e-5)
    assert bool((out[count:] == 7).all())


def test_product_refuses_what_it_would_misread() -> None:
    x, w = np.zeros((2, 8), np.float32), np.zeros((8, 8), np.float32)
    for wrong in (w.astype(np.float64), w.T, w.astype(np.int32)):
        with pytest.raises(Exception, match="contiguous matrices"):
            product(x, wrong, 2, w)
