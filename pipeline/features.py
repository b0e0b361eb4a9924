"""Kernels as a cache runs them: weights packed once, one token at a time."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.kernels import Kernel, LessKernel


class PackedKernel:
    """A trained :class:`~pipeline.kernels.LessKernel` for inference.

    The matrices of phi and psi are joined head by head and cast to the kernel's compute type once,
    so that the two maps of a decode step are one pair of batched products. Dropout is off.
    """

    def __init__(self, kernel: LessKernel) -> None:
        with torch.no_grad():
            self.heads = kernel.phi_w1.shape[0]
            self.kernel_size = kernel.kernel_size
            dtype = kernel.compute_dtype
            # Held as (heads, out, in): CPU products with a few rows read that twice as fast.
            self.w1 = torch.cat([kernel.phi_w1.mT, kernel.psi_w1.mT]).to(dtype).contiguous()
            self.w2 = torch.cat([kernel.phi_w2.mT, kernel.psi_w2.mT]).to(dtype).contiguous()
            self.w3 = kernel.psi_w3.float() * kernel.s2.float()[:, None]
            self.device = self.w1.device
            self.s1 = kernel.s1.detach().float().abs()[:, None]

    def _mlp(self, x: torch.Tensor, heads: slice) -> torch.Tensor:
        """gelu(gelu(x W1) W2) by head: (heads, T, D) to (heads, T, R), float32."""
        hidden = F.gelu(torch.bmm(x.to(self.w1.dtype), self.w1[heads].mT))
        return F.gelu(torch.bmm(hidden, self.w2[heads].mT).float())

    def _scale(self, u: torch.Tensor) -> torch.Tensor:
        """What psi does after its two layers: (G, T, R) to (G, T, R)."""
        u = u * self.s1
        return torch.baddbmm(u, u, self.w3).abs()

    def phi(self, q: torch.Tensor) -> torch.Tensor:
        """Query features, (B, H, S, D) to (B, H, S, R)."""
        x, shape = _by_head(q)
        return _by_batch(self._mlp(x, slice(0, self.heads)).abs(), shape)

    def psi(self, k: torch.Tensor) -> torch.Tensor:
        """Key features, (B, G, S, D) to (B, G, S, R)."""
        x, shape = _by_head(k)
        return _by_batch(self._scale(self._mlp(x, slice(self.heads, None))), shape)

    def both(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(phi(q), psi(k)) of as many tokens each, through one pair of products."""
        x, shape = _by_head(torch.cat([q.to(self.w1.dtype), k.to(self.w1.dtype)], 1))
        out = self._mlp(x, slice(None))
        phi, psi = out[: self.heads].abs(), self._scale(out[self.heads :])
        return _by_batch(phi, shape), _by_batch(psi, shape)


class PlainKernel:
    """Any other kernel behind the same three maps."""

    def __init__(self, kernel: Kernel) -> None:
        tensors = kernel.state_dict().values() if isinstance(kernel, nn.Module) else ()
        self.device = next((x.device for x in tensors), torch.device("cpu"))
        self.kernel_size = kernel.kernel_size
        self.phi, self.psi = kernel.phi, kernel.psi

    def both(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(phi(q), psi(k))."""
        return self.phi(q), self.psi(k)


def pack(kernel: Kernel | PackedKernel) -> PackedKernel | PlainKernel:
    """The form of ``kernel`` that a cache runs; packed ones are returned as they are."""
    if isinstance(kernel, PackedKernel):
        return kernel
    return PackedKernel(kernel) if isinstance(kernel, LessKernel) else PlainKernel(kernel)


def _by_head(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """(B, H, S, D) to (H, B * S, D), and (B, S)."""
    batch, heads, length, size = x.shape
    return x.transpose(0, 1).reshape(heads, batch * length, size), (batch, length)


def _by_batch(x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The way back: (H, B * S, R) to (B, H, S, R)."""
    return x.view(x.shape[0], *shape, x.shape[-1]).transpose(0, 1)
