"""State the bytes that caches hold."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from ..policies import Policy
from ..transformer.shape import model_shape


def expected_memory(
    config: PreTrainedConfig,
    policy: Policy,
    batch: int,
    dtype: torch.dtype,
    kernel_size: int | None = None,
    features: bool = False,
) -> dict[str, int]:
    """Return the bytes that a :class:`LessCache` will hold, by the parts of its ``memory``.

    Args:
        kernel_size: R, or None without kernels.
        features: whether the device keeps psi of each slot (``KEEPS_FEATURES`` of
            :class:`pipeline.ops.decode.DecodeBackend`).
    """
    shape = model_shape(config)
    groups, size = shape.num_kv_heads, shape.head_dim
    sets, places = groups if policy.pooling == "group" else 1, policy.budget + 1
    units = shape.num_layers * batch
    numbers = places * (2 if policy.needs_scores else 1) + 1  # positions, scores; the free slot
    return {
        "slots": units * groups * places * 2 * size * dtype.itemsize,
        "scores": units * (sets * numbers + 1) * 4,
        "state": units * groups * (kernel_size or 0) * (size + 1) * 4,
        "features": units * groups * places * (kernel_size or 0) * 4 if features else 0,
    }


def full_cache_bytes(config: PreTrainedConfig, batch: int, length: int, dtype: torch.dtype) -> int:
    """Return the bytes of the library's full cache after ``length`` tokens."""
    shape = model_shape(config)
    pairs = shape.num_layers * batch * shape.num_kv_heads * length
    return pairs * 2 * shape.head_dim * dtype.itemsize
