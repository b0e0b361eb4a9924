"""Feature maps in Triton against the packed kernel.

On a GPU they run compiled; elsewhere in Triton's interpreter, which conftest asks for before
anything imports triton. The interpreter is slow, so cases are small and few.
"""

import torch
from helpers import cases, strong_kernel
from hypothesis import given
from hypothesis import strategies as st
from triton_cases import DEVICE, few

from pipeline.ops.gpu import maps
from pipeline.ops.packed import PackedKernel


@few
@given(
    cases(max_length=9),
    st.sampled_from([(4, 8), (8, 40), (32, 100)]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_maps_of_a_step(case, sizes, compute):
    rank, hidden = sizes
    kernel = strong_kernel(case, kernel_size=rank, hidden_size=hidden, compute_dtype=compute)
    kernel = PackedKernel(kernel.to(DEVICE))
    q, k, _ = (x.to(DEVICE) for x in case.qkv)
    expected = kernel.phi(q), kernel.psi(k)
    for mine, truth in zip(maps.features(kernel, q, k), expected, strict=True):
        # The first product is rounded to the compute type, and a sum may fall on either side.
        near = 1e-5 if compute == torch.float32 else 2e-2
        torch.testing.assert_close(mine, truth, rtol=0, atol=near * max(1, float(truth.max())))
