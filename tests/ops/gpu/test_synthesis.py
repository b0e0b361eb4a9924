"""Synthesis by Triton operators against the plain ones.

On a GPU they run compiled; elsewhere in Triton's interpreter, which conftest asks for before
anything imports triton. The interpreter is slow, so cases are small and few.
"""

from contextlib import nullcontext

import pytest
import torch
from helpers import Case, cases, randn, strong_kernel
from hypothesis import given
from triton_cases import CLOSE, DEVICE, Reader, few, on_device, real_cases

from pipeline import synthesis
from pipeline.eviction import evicted_at
from pipeline.ops.gpu import decode as decoding
from pipeline.policies import get_policy


@few
@given(cases(max_length=24))
@real_cases()
def test_synthesis_and_its_gradients(case):
    times = evicted_at(*case.qkv[:2], case.policy, case.scores, case.prompt).to(DEVICE)
    q, k, v = (x.to(DEVICE) for x in case.qkv)
    kernel, toward = strong_kernel(case).to(DEVICE), randn(*q.shape, seed=1).to(DEVICE)

    def everything(device):
        kernel.zero_grad()
        with device:
            out = synthesis.synthesize(q, k, v, times, kernel)
        if out.grad_fn is not None:  # something was evicted
            (out * toward).sum().backward()
        return out, {name: p.grad for name, p in kernel.named_parameters()}

    (mine, grads), (truth, expected) = map(everything, (on_device(), nullcontext()))
    torch.testing.assert_close(mine, truth, **CLOSE)
    for name, grad in expected.items():
        if grad is None:
            assert grads[name] is None
            continue
        largest = float(grad.abs().max())
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-3 * largest + 1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_without_a_memory_all_is_the_sparse_policy(scale):
    """Over a sequence and step by step, whatever the logits."""
    case = Case(get_policy("h2o", 4), 1, 1, 2, 12, 4, 0, torch.float32, "cached", scale, 0)
    times = evicted_at(*case.qkv[:2], case.policy, case.scores, case.prompt).to(DEVICE)
    q, k, v = (x.to(DEVICE) for x in case.qkv)
    kernel = strong_kernel(case).to(DEVICE)
    kernel.silence()
    with on_device():
        whole = synthesis.synthesize(q, k, v, times, kernel)
    torch.testing.assert_close(whole, synthesis.sparse_part(q, k, v, times)[0], **CLOSE)
    reader, sparse = (Reader(case, torch.tensor([0]), each) for each in (kernel, None))
    for t in range(case.length):
        out, expected = reader.step(t, t + 1)[0], sparse.decode(decoding, t, t + 1)[0]
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
