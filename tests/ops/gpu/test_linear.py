"""Linear attention in Triton against its plain reference.

On a GPU they run compiled; elsewhere in Triton's interpreter, which conftest asks for before
anything imports triton. The interpreter is slow, so cases are small and few.
"""

from unittest import mock

import torch
from helpers import randn
from hypothesis import example, given
from hypothesis import strategies as st
from triton_cases import CLOSE, DEVICE, few

from pipeline import synthesis
from pipeline.ops import low_rank
from pipeline.ops.gpu import linear as gpu_linear


@few
@given(
    st.integers(1, 40), st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    st.sampled_from([1, 5, 8, 32]), st.sampled_from([4, 16, 80]), st.integers(0, 2**20),
)  # fmt: skip
@example(length=24, heads=(2, 1), rank=32, size=128, seed=0)
def test_linear_attention_and_its_gradients(length, heads, rank, size, seed):
    shapes = (heads[0], rank), (heads[1], rank), (heads[1], size)
    leaves = [
        randn(2, count, length, width, seed=seed + i).to(DEVICE).requires_grad_()
        for i, (count, width) in enumerate(shapes)
    ]
    weights = [
        randn(2, heads[0], length, *rest, seed=seed + 3).to(DEVICE) for rest in ((size,), ())
    ]

    def everything(linear_attention):
        parts = linear_attention(*leaves)
        loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        return [*parts, *torch.autograd.grad(loss, leaves)]

    mine, truth = everything(gpu_linear.linear_attention), everything(low_rank.linear_attention)
    for a, b in zip(mine, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max() + 1))


def test_training_takes_the_linear_attention_of_its_device():
    """What a layer's loss is made of, with what a prompt's cut left."""
    phi, psi, v = (
        randn(1, n, t, w, seed=n + t).abs() for n, t, w in ((4, 9, 4), (2, 14, 4), (2, 14, 8))
    )
    phi, psi, v = (x.to(DEVICE) for x in (phi, psi, v))

    def everything(linear_attention):
        leaves = [x.clone().requires_grad_() for x in (phi, psi)]
        with mock.patch.object(synthesis, "linear_attention", linear_attention):
            parts = synthesis.low_rank_part(*leaves, v, initial=5)
        return [*parts, *torch.autograd.grad(sum(p.sum() for p in parts), leaves)]

    mine, truth = everything(gpu_linear.linear_attention), everything(low_rank.linear_attention)
    torch.testing.assert_close(mine, truth, **CLOSE)
