"""Pick the backend of feature maps of single tokens, as a decode step runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .packed import PackedKernel, PlainKernel


def token_maps(
    kernel: PackedKernel | PlainKernel, q: torch.Tensor, k: torch.Tensor
) -> Callable[[], object]:
    """Return what forms phi of queries q (B, H, 1, D) and psi of keys k (B, G, 1, D).

    Queries and keys are laid out beforehand as the backend's decode step has them.
    """
    if q.device.type == "cuda":
        from .gpu import maps as gpu

        return lambda: gpu.features(kernel, q, k)
    if q.device.type == "cpu" and isinstance(kernel, PackedKernel):
        from .cpu import maps as cpu

        rows = torch.cat([q, k], 1)[:, :, 0].transpose(0, 1).contiguous()
        return lambda: cpu.features(kernel, rows)
    return lambda: (kernel.phi(q), kernel.psi(k))
