"""Kernels as a cache runs them: weights packed once, one token at a time."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.kernels import Kernel, LessKernel


class PackedKernel:
    """A trained :class:`~pipeline.kernels.LessKernel` for inference.

    The last steps of psi are one matrix, since its scalars and W3 act on what gelu gave:

        phi(q) = | gelu( gelu(q W1) W2 ) |      psi(k) = | gelu( gelu(k W1) W2 ) M |
        M = diag(|s1|) (I + W3 diag(s2))

    With M = I for phi the two maps are the same, and their matrices are joined head by head, so
    that both maps of a decode step are three batched products. Dropout is off; W1 and W2 are cast
    to the kernel's compute type once.
    """

    def __init__(self, kernel: LessKernel) -> None:
        with torch.no_grad():
            self.heads = kernel.phi_w1.shape[0]
            self.kernel_size = kernel.kernel_size
            # Held as (heads, out, in) and multiplied from the left: with a few tokens the time goes
            # into reading the weights, and CPU products read a left operand fastest.
            w1 = torch.cat([kernel.phi_w1.mT, kernel.psi_w1.mT])
            w2 = torch.cat([kernel.phi_w2.mT, kernel.psi_w2.mT])
            self.w1 = w1.to(kernel.compute_dtype).contiguous()
            self.w2 = w2.to(kernel.compute_dtype).contiguous()
            unit = torch.eye(kernel.psi_w3.shape[-1], device=w1.device)
            last = kernel.s1.abs()[..., None] * (unit + kernel.psi_w3 * kernel.s2[:, None])
            self.last = torch.cat([unit.expand(self.heads, -1, -1), last]).mT.contiguous()
            self.device = w1.device

    def _features(self, x: torch.Tensor, heads: slice) -> torch.Tensor:
        """Features of (B, heads, S, D), float32 (B, heads, S, R), by the matrices of ``heads``."""
        batch, count, length, size = x.shape
        rows = x.transpose(0, 1).reshape(count, batch * length, size).to(self.w1.dtype)
        hidden = F.gelu(torch.bmm(self.w1[heads], rows.mT))
        u = F.gelu(torch.bmm(self.w2[heads], hidden).float())
        out = torch.bmm(self.last[heads], u).abs_()  # (heads, R, B * S)
        return out.view(count, -1, batch, length).permute(2, 0, 3, 1)

    def phi(self, q: torch.Tensor) -> torch.Tensor:
        """Query features, (B, H, S, D) to (B, H, S, R)."""
        return self._features(q, slice(0, self.heads))

    def psi(self, k: torch.Tensor) -> torch.Tensor:
        """Key features, (B, G, S, D) to (B, G, S, R)."""
        return self._features(k, slice(self.heads, None))

    def both(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(phi(q), psi(k)) of as many tokens each."""
        features = self._features(torch.cat([q, k], 1), slice(None))
        return features[:, : self.heads], features[:, self.heads :]


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
