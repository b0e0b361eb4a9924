"""Feature maps phi and psi: phi(q) psi(k)^T stands in for exp(q k^T / sqrt(d)).

A kernel is a module of one attention layer with ``phi(q)`` (B, H, S, D) -> (B, H, S, R) and
``psi(k)`` (B, G, S, D) -> (B, G, S, R), both non-negative and float32. New ones register
themselves in :data:`KERNELS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .errors import unknown

SCALAR_INIT = 1e-4  # training starts from the sparse policy (paper, section 3.2)


class Kernel(Protocol):
    """What synthesis, cache and training need of a feature map."""

    kernel_size: int

    def phi(self, q: torch.Tensor) -> torch.Tensor:
        """Query features, (B, H, S, D) to (B, H, S, R)."""

    def psi(self, k: torch.Tensor) -> torch.Tensor:
        """Key features, (B, G, S, D) to (B, G, S, R)."""


class TrainableKernel(nn.Module):
    """What training and checkpoints need of a kernel beyond :class:`Kernel`.

    Its constructor takes the arguments of :func:`get_kernel`.
    """

    kernel_size: int
    compute_dtype: torch.dtype

    def phi(self, q: torch.Tensor) -> torch.Tensor:
        """Query features, (B, H, S, D) to (B, H, S, R)."""
        raise NotImplementedError

    def psi(self, k: torch.Tensor) -> torch.Tensor:
        """Key features, (B, G, S, D) to (B, G, S, R)."""
        raise NotImplementedError

    def reseed(self, seed: int) -> None:
        """Fix all that is drawn at random in training, from ``seed`` on."""

    def silence(self) -> None:
        """Make psi, and so the state, zero in place: what is left is the sparse policy."""
        raise NotImplementedError


class Dropout(nn.Module):
    """Inverted dropout with a generator of its own, cheap on CPU.

    On CPU the mask comes from random bytes (p is rounded to 1/256): drawing floats there costs
    more than all matrix products around it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.seed = 0

    def reseed(self, seed: int) -> None:
        """Fix the next masks, so that a resumed training draws what an unbroken one would."""
        self.seed = seed

    def draw(self, shape: Sequence[int], device: torch.device) -> tuple[torch.Tensor | None, float]:
        """Return the next mask (uint8, 1 where kept; None keeps all) and the scale of the kept."""
        if not self.training or self.p == 0:
            return None, 1.0
        self.seed += 1
        if device.type != "cpu":
            generator = torch.Generator(device).manual_seed(self.seed)
            drawn = torch.rand(shape, device=device, generator=generator) >= self.p
            return drawn.view(torch.uint8), 1 / (1 - self.p)
        count, dropped = math.prod(shape), round(self.p * 256)
        drawn_bytes = np.random.SFC64(self.seed).random_raw(-(-count // 8)).view(np.uint8)[:count]
        keep = torch.from_numpy(drawn_bytes >= np.uint8(dropped)).view(torch.uint8)
        return keep.view(*shape), 256 / (256 - dropped)


class _TwoLayers(torch.autograd.Function):
    """gelu(keep * x W1) W2 by head, which keeps one hidden tensor for the backward pass.

    Autograd on its own would keep the hidden units on both sides of the GELU and allocate a tensor
    for every step back. Here all else is scratch; on a CPU it is of one head at a time, which stays
    in the processor's cache: half the time at 4096 tokens. Scaling what dropout keeps is left
    to W1.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, keep: torch.Tensor | None
    ) -> torch.Tensor:
        """Return x (N, T, D), W1 (N, D, R'), W2 (N, R', R), keep (N, T, R') uint8: (N, T, R)."""
        kept: list[torch.Tensor] = []
        out: list[torch.Tensor] = []
        for part in _parts(x):
            hidden = torch.bmm(x[part], w1[part])
            if keep is not None:
                hidden.mul_(keep[part])
            kept.append(hidden)
            out.append(torch.bmm(F.gelu(hidden), w2[part]))
        ctx.save_for_backward(x, w1, w2, keep, *kept)
        return torch.cat(out)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return gradients of x (where wanted), W1 and W2."""
        x, w1, w2, keep, *kept = ctx.saved_tensors
        parts: list[tuple[torch.Tensor, ...]] = []
        for part, hidden in zip(_parts(x), kept, strict=True):
            work = F.gelu(hidden)
            grad_w2 = torch.bmm(work.mT, grad[part])
            torch.bmm(grad[part], w2[part].mT, out=work)
            torch.ops.aten.gelu_backward.grad_input(work, hidden, grad_input=work)
            if keep is not None:
                work.mul_(keep[part])
            grad_x = [torch.bmm(work, w1[part].mT)] if ctx.needs_input_grad[0] else []
            parts.append((torch.bmm(x[part].mT, work), grad_w2, *grad_x))
        grad_w1, grad_w2, *grad_x = (torch.cat(column) for column in zip(*parts, strict=True))
        return grad_x[0] if grad_x else None, grad_w1, grad_w2, None


def _parts(x: torch.Tensor) -> list[slice]:
    """Return the heads (N, ...) that are worked on at once: one on a CPU, all of them elsewhere."""
    step = 1 if x.device.type == "cpu" else len(x)
    return [slice(n, n + step) for n in range(0, len(x), step)]


class LessKernel(TrainableKernel):
    """The paper's learned kernel in its released form (Dong et al. 2024, equations 1 and 2).

        phi(q) = | gelu( gelu(q W1) W2 ) |
        psi(k) = | u + (u W3) * s2 |,   u = |s1| * gelu( gelu(k W1) W2 )

    No biases; weights per head (phi by query head, psi by key/value head), Xavier-uniform; dropout
    after the first linear map, before its GELU. Inputs are post-rotary and not scaled. The scalars
    start at 1e-4, so an untrained kernel leaves the sparse policy almost as it is.

    Parameters are float32; matrix products run in ``compute_dtype`` and features are float32.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        kernel_size: int = 8,
        hidden_size: int = 512,
        dropout: float = 0.3,
        seed: int = 0,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.compute_dtype = compute_dtype
        generator = torch.Generator().manual_seed(seed)

        def xavier(heads: int, fan_in: int, fan_out: int) -> nn.Parameter:
            bound = math.sqrt(6 / (fan_in + fan_out))
            drawn = torch.rand(heads, fan_in, fan_out, generator=generator)
            return nn.Parameter((2 * drawn - 1) * bound)

        self.phi_w1 = xavier(num_heads, head_dim, hidden_size)
        self.phi_w2 = xavier(num_heads, hidden_size, kernel_size)
        self.psi_w1 = xavier(num_kv_heads, head_dim, hidden_size)
        self.psi_w2 = xavier(num_kv_heads, hidden_size, kernel_size)
        self.psi_w3 = xavier(num_kv_heads, kernel_size, kernel_size)
        self.s1 = nn.Parameter(torch.full((num_kv_heads, kernel_size), SCALAR_INIT))
        self.s2 = nn.Parameter(torch.full((num_kv_heads, kernel_size), SCALAR_INIT))
        self.dropout = Dropout(dropout)

    def reseed(self, seed: int) -> None:
        """Fix the next dropout masks."""
        self.dropout.reseed(seed)

    @torch.no_grad()
    def silence(self) -> None:
        """Set s1 to 0, in place."""
        self.s1.zero_()

    def _mlp(self, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
        """Return gelu(gelu(x W1) W2) by head: (B, H, S, D) to (B, H, S, R), float32."""
        batch, heads, length, size = x.shape
        flat = x.transpose(0, 1).reshape(heads, batch * length, size).to(self.compute_dtype)
        keep, scale = self.dropout.draw((heads, batch * length, w1.shape[-1]), x.device)
        w1, w2 = (w1 * scale).to(self.compute_dtype), w2.to(self.compute_dtype)
        out = F.gelu(_TwoLayers.apply(flat, w1, w2, keep).float())
        return out.view(heads, batch, length, -1).transpose(0, 1)

    def phi(self, q: torch.Tensor) -> torch.Tensor:
        """Query features: (B, H, S, D) to (B, H, S, R), float32, non-negative."""
        return self._mlp(q, self.phi_w1, self.phi_w2).abs()

    def psi(self, k: torch.Tensor) -> torch.Tensor:
        """Key features: (B, G, S, D) to (B, G, S, R), float32, non-negative."""
        u = self.s1.abs()[:, None] * self._mlp(k, self.psi_w1, self.psi_w2)
        return (u + (u @ self.psi_w3) * self.s2[:, None]).abs()


class PerformerKernel(nn.Module):
    """Positive random features (Choromanski et al. 2021, arXiv:2009.14794), nothing trained.

        phi(x) = psi(x) = exp( w x' - |x'|^2 / 2 ) / sqrt(R),   x' = x / d^(1/4),  w ~ N(0, I)

    an unbiased estimate of exp(q k^T / sqrt(d)). The same w serves all heads of the layer.
    ``hidden_size`` and ``dropout`` are accepted and unused, so that all kernels build alike.
    """

    LARGEST_EXPONENT = 40.0  # exp(40)^2 still leaves room in float32 for sums over long sequences

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        kernel_size: int = 8,
        hidden_size: int = 0,
        dropout: float = 0.0,
        seed: int = 0,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("w", torch.randn(head_dim, kernel_size, generator=generator))
        self.w: torch.Tensor

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float() * x.shape[-1] ** -0.25
        exponent: torch.Tensor = x @ self.w - x.square().sum(-1, keepdim=True) / 2
        features: torch.Tensor = exponent.clamp(max=self.LARGEST_EXPONENT).exp()
        return features / math.sqrt(self.kernel_size)

    def phi(self, q: torch.Tensor) -> torch.Tensor:
        """Query features: (B, H, S, D) to (B, H, S, R), float32, positive."""
        return self._features(q)

    def psi(self, k: torch.Tensor) -> torch.Tensor:
        """Key features: (B, G, S, D) to (B, G, S, R), float32, positive."""
        return self._features(k)


KERNELS: dict[str, type[LessKernel] | type[PerformerKernel]] = {
    "less": LessKernel,
    "performer": PerformerKernel,
}


def layer_seed(seed: int, layer: int) -> int:
    """Return the seed of one layer's kernel: layers differ, and so do runs of near seeds."""
    return seed * 1009 + layer


def get_kernel(
    name: str,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kernel_size: int = 8,
    hidden_size: int = 512,
    dropout: float = 0.3,
    seed: int = 0,
    compute_dtype: torch.dtype = torch.float32,
) -> LessKernel | PerformerKernel:
    """Return the kernel ``name`` for one attention layer, newly made.

    Args:
        num_heads, num_kv_heads, head_dim: H, G and D of the layer.
        kernel_size: R, features a token; the state has as many numbers as R/2 tokens.
        hidden_size: R', the MLP's width (``less``).
        seed: initial weights are a function of it alone.
        compute_dtype: of the matrix products; parameters and features stay float32.

    Raises:
        ConfigError: unknown name (the nearest is suggested).
    """
    if name not in KERNELS:
        raise unknown("kernel", name, KERNELS)
    return KERNELS[name](
        num_heads, num_kv_heads, head_dim, kernel_size, hidden_size, dropout, seed, compute_dtype
    )
