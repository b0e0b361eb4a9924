"""Drawn cases and plain truths that several test files share."""

import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
import torch
from hypothesis import strategies as st

from pipeline.kernels import get_kernel
from pipeline.ops.times import NEVER, by_index_set
from pipeline.policies import FAMILIES, Policy, get_policy

NEAR_TIE = 1e-5
"""Two float32 scores nearer than this, relatively, may be ordered either way by rounding."""


def randn(*shape, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


@dataclass(frozen=True)
class Case:
    """A policy and the q, k, v (by seed) of one layer to run it on."""

    policy: Policy
    batch: int
    groups: int
    rep: int
    length: int
    size: int
    prompt: int
    dtype: torch.dtype
    scores: str
    scale: float
    seed: int

    @cached_property
    def qkv(self):
        kv = (self.batch, self.groups, self.length, self.size)
        return (
            randn(self.batch, self.groups * self.rep, self.length, self.size, seed=self.seed,
                  dtype=self.dtype, scale=self.scale),
            randn(*kv, seed=self.seed + 1, dtype=self.dtype, scale=self.scale),
            randn(*kv, seed=self.seed + 2, dtype=self.dtype),
        )  # fmt: skip

    @property
    def sets(self):
        """q, k, v by index set: (U, M, N, S, D), (U, M, S, D) twice."""
        q, k, v = self.qkv
        q, k = by_index_set(q, k, self.policy)
        return q, k, v.reshape(k.shape)

    def but(self, **changes):
        return replace(self, **changes)


@st.composite
def policies(draw, length):
    """Named policies and free members of the family; budgets of 1, odd, and beyond the length."""
    budget = draw(st.integers(1, length + 2), label="budget")
    if draw(st.booleans(), label="named"):
        return get_policy(draw(st.sampled_from(sorted(FAMILIES))), budget)
    sink = draw(st.integers(0, budget))
    recent = draw(st.integers(0, budget - sink))
    decay = draw(st.sampled_from([0.0, 0.5, 0.97, 1.0]))
    pooling = draw(st.sampled_from(["group", "layer"]))
    return Policy("free", sink, recent, budget - sink - recent, decay, pooling)


@st.composite
def cases(draw, max_length=32, dtypes=(torch.float32, torch.bfloat16, torch.float16)):
    length = draw(st.integers(1, max_length), label="length")
    groups, rep = draw(st.sampled_from([(1, 1), (3, 1), (2, 2), (1, 3), (2, 3)]), label="heads")
    return Case(
        policy=draw(policies(length)),
        batch=draw(st.integers(1, 2)),
        groups=groups,
        rep=rep,
        length=length,
        size=draw(st.sampled_from([1, 4, 16])),
        prompt=draw(st.one_of(st.just(0), st.integers(1, length))),
        dtype=draw(st.sampled_from(dtypes)),
        scores=draw(st.sampled_from(["cached", "full"])),
        scale=draw(st.sampled_from([0.3, 1.0, 3.0])),
        seed=draw(st.integers(0, 2**20)),
    )


def visible(times):
    """Key j is visible to query i iff j <= i < times[j]: (..., S) to (..., S, S)."""
    j = torch.arange(times.shape[-1])
    i = j[:, None]
    return (j <= i) & (i < times[..., None, :])


def scores_after(case, times, query, unit):
    """Scores (S,) in float64 after ``query`` of one index set, from the definition, no loop."""
    q, k, _ = case.sets
    logits = q[unit].double() @ k[unit].double()[:, None].mT * case.size**-0.5
    seen = visible(times[unit]) if case.scores == "cached" else visible(times[unit] * 0 + NEVER)
    if case.prompt:
        seen[: case.prompt] = visible(torch.full((case.length,), NEVER))[: case.prompt]
    p = logits.masked_fill(~seen, -torch.inf).softmax(-1).sum((0, 1))[: query + 1]
    return (p * case.policy.decay ** torch.arange(query, -1, -1.0)[:, None]).sum(0)


def assert_same_evictions(case, expected, actual):
    """Equal times (U, S), or, where they first differ, a near tie that rounding may break.

    Up to the first difference both histories are the same, so the reference scores of the keys
    that one evicts and the other keeps must agree to :data:`NEAR_TIE`. Later times follow from
    other caches and say nothing.
    """
    for unit in (expected != actual).any(-1).nonzero().flatten().tolist():
        differs = expected[unit] != actual[unit]
        time = int(torch.minimum(expected[unit], actual[unit])[differs].min())
        mine, theirs = expected[unit] == time, actual[unit] == time
        assert mine.sum() == theirs.sum(), f"index set {unit}, query {time - 1}: uneven evictions"
        swapped = mine ^ theirs
        position = torch.arange(case.length)[swapped]
        assert (position >= case.policy.sink).all()
        assert (position < time - case.policy.recent).all()
        score = scores_after(case, expected, time - 1, unit)[swapped]
        assert score.max() - score.min() <= NEAR_TIE * score.max(), (
            f"index set {unit} after query {time - 1}: keys {position.tolist()} "
            f"of scores {score.tolist()} are no tie"
        )


def strong_kernel(case, seed=0, **options):
    """A LESS kernel in evaluation mode whose features matter (scalars near one, not 1e-4)."""
    kernel = get_kernel(
        "less", num_heads=case.groups * case.rep, num_kv_heads=case.groups, head_dim=case.size,
        **{"kernel_size": 4, "hidden_size": 8, "seed": seed, **options},
    ).eval()  # fmt: skip
    with torch.no_grad():
        kernel.s1.copy_(randn(*kernel.s1.shape, seed=seed) + 1)
        kernel.s2.copy_(randn(*kernel.s2.shape, seed=seed + 1) + 1)
    return kernel


def dense_synthesis(q, k, v, times, kernel=None, epsilon=1e-6):
    """Equation 3 by S x S masks in float64: the truth of every other form."""
    rep = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    seen = visible(times).repeat_interleave(rep, 1)
    missed = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril() & ~seen
    logits = q @ k.repeat_interleave(rep, 1).mT * q.shape[-1] ** -0.5
    top = logits.masked_fill(~seen, -torch.inf).amax(-1, keepdim=True)
    weights = (logits - top).exp() * seen
    extra = torch.zeros_like(weights[..., :1])
    if kernel is not None:
        phi, psi = kernel.phi(q.float()).double(), kernel.psi(k.float()).double()
        low_rank = phi @ psi.repeat_interleave(rep, 1).mT
        weights = weights + low_rank * missed * (-top).exp()
        extra = epsilon * (-top).exp() * missed.any(-1, keepdim=True)
    return weights @ v.repeat_interleave(rep, 1) / (weights.sum(-1, keepdim=True) + extra)


def browse(page, folder, part="", seconds=10):
    """(document, console errors, addresses the page asked for over a network).

    ``part`` is what follows the # of its address; its scripts have ``seconds`` of the page's own
    clock, which skips what is only waited for.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    log = folder / "net.json"
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}",
         "--enable-logging=stderr", f"--virtual-time-budget={1000 * seconds}", "--dump-dom",
         page.as_uri() + part],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    errors = [line for line in console if re.search("error|refused|failed", line, re.IGNORECASE)]
    # Of all requests, those of the page; the browser has its own.
    asked = [line for line in log.read_text().splitlines() if "site=file://" in line]
    return done.stdout, errors, set(re.findall(r'"url":"((?:http|ws)[^"]*)"', "".join(asked)))
