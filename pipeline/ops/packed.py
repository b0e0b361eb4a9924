"""Kernels as a cache runs them: weights packed once, one token at a time."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..kernels import Kernel, LessKernel


class PackedKernel:
    """A trained :class:`~pipeline.kernels.LessKernel` for inference.

    The last steps of psi are one matrix, since its scalars and W3 act on what gelu gave:

        phi(q) = | gelu( gelu(q W1) W2 ) |      psi(k) = | gelu( gelu(k W1) W2 ) M |
        M = diag(|s1|) (I + W3 diag(s2))

    With M = I for phi the two maps are the same, and their matrices are joined head by head
    (A = H + G maps, the queries' first). Dropout is off; W1 is cast to the kernel's compute type
    once.

    Attributes:
        w1: (A, D, R'), in the compute type.
        w2: (A, R', R), float32. last: M transposed, (A, R, R), float32.
    """

    def __init__(self, kernel: LessKernel) -> None:
        with torch.no_grad():
            self.heads = kernel.phi_w1.shape[0]
            self.kernel_size = kernel.kernel_size
            self.w1 = torch.cat([kernel.phi_w1, kernel.psi_w1]).to(kernel.compute_dtype)
            self.w2 = torch.cat([kernel.phi_w2, kernel.psi_w2])
            unit = torch.eye(kernel.psi_w3.shape[-1], device=self.w1.device)
            last = kernel.s1.abs()[..., None] * (unit + kernel.psi_w3 * kernel.s2[:, None])
            self.last = torch.cat([unit.expand(self.heads, -1, -1), last]).mT.contiguous()
            self.device = self.w1.device

    def _features(self, x: torch.Tensor, maps: slice) -> torch.Tensor:
        """Return features of (B, maps, S, D), float32 (B, maps, S, R)."""
        batch, count, length, size = x.shape
        rows = x.transpose(0, 1).reshape(count, -1, size).to(self.w1.dtype)
        hidden = torch.bmm(rows, self.w1[maps])
        u = F.gelu(torch.bmm(F.gelu(hidden.float()), self.w2[maps]))
        out = torch.bmm(u, self.last[maps].mT).abs_()  # (maps, B * S, R)
        return out.view(count, batch, length, -1).transpose(0, 1)

    def phi(self, q: torch.Tensor) -> torch.Tensor:
        """Query features, (B, H, S, D) to (B, H, S, R)."""
        return self._features(q, slice(0, self.heads))

    def psi(self, k: torch.Tensor) -> torch.Tensor:
        """Key features, (B, G, S, D) to (B, G, S, R)."""
        return self._features(k, slice(self.heads, None))


class PlainKernel:
    """Any other kernel behind the same maps."""

    def __init__(self, kernel: Kernel) -> None:
        tensors = kernel.state_dict().values() if isinstance(kernel, nn.Module) else ()
        self.device = next((x.device for x in tensors), torch.device("cpu"))
        self.kernel_size = kernel.kernel_size
        self.phi, self.psi = kernel.phi, kernel.psi


def pack(kernel: Kernel | PackedKernel) -> PackedKernel | PlainKernel:
    """Return the form of ``kernel`` that a cache runs; packed ones are returned as they are."""
    if isinstance(kernel, PackedKernel):
        return kernel
    return PackedKernel(kernel) if isinstance(kernel, LessKernel) else PlainKernel(kernel)
