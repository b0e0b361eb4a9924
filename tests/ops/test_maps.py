"""Feature maps of single tokens by the backend of their device."""

import numpy as np
import pytest
import torch
from helpers import Case, strong_kernel

from pipeline.kernels import get_kernel
from pipeline.ops.maps import token_maps
from pipeline.ops.packed import pack
from pipeline.policies import get_policy

CASE = Case(get_policy("h2o", 4), 3, 2, 2, 1, 16, 0, torch.float32, "cached", 1.0, 0)


@torch.no_grad()
def test_a_packed_kernel_maps_queries_then_keys():
    kernel, (q, k, _) = pack(strong_kernel(CASE)), CASE.qkv
    features = token_maps(kernel, q, k)()
    expected = torch.cat([kernel.phi(q), kernel.psi(k)], 1)[:, :, 0].transpose(0, 1)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_kernels_and_devices_map_plainly(device):
    kernel = get_kernel("performer", num_heads=4, num_kv_heads=2, head_dim=16).to(device)
    q, k, _ = (x.to(device) for x in CASE.qkv)
    phi, psi = token_maps(pack(kernel), q, k)()
    assert (phi.shape, psi.shape) == ((3, 4, 1, 8), (3, 2, 1, 8))
