"""A full cache of fixed size, the peer that the engine decodes with."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from ..errors import ConfigError
from ..transformer.interface import AttendingLayer

BUCKET = 1024
"""On a GPU a full cache reads a multiple of these tokens, the unwritten ones masked: one graph."""


class FullLayer(AttendingLayer):
    """All pairs of one layer, in buffers of ``room`` tokens."""

    def __init__(self, cache: FullCache) -> None:
        super().__init__()
        self.cache = cache
        self.seen = 0  # tokens read

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers."""
        batch, groups, _, size = key_states.shape
        room = self.cache.room
        self.keys = key_states.new_zeros(batch, groups, room, size)
        self.values = value_states.new_zeros(batch, groups, room, size)
        self.is_initialized = True

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return attention of a prompt, or of one token after it, whose pairs are written."""
        cache, length = self.cache, q.shape[2]
        assert self.keys is not None
        assert self.values is not None
        if length > 1:
            self.seen += length
            self.keys[:, :, :length], self.values[:, :, :length] = k, v
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        self.seen += 1
        self.keys.index_copy_(2, cache.position, k)
        self.values.index_copy_(2, cache.position, v)
        # Query heads that share keys are rows of one product: each pair is read once.
        out = F.scaled_dot_product_attention(
            q.view(q.shape[0], k.shape[1], -1, q.shape[-1]),
            self.keys[:, :, : cache.reads],
            self.values[:, :, : cache.reads],
            attn_mask=cache.visible[..., : cache.reads] if cache.masked else None,
        )
        return out.view(q.shape)

    def get_seq_length(self) -> int:
        """Return the tokens read."""
        return self.seen

    def get_max_length(self) -> int:
        """Return the tokens that fit."""
        return self.cache.room


class FullCache(Cache):
    """The full cache of a model, in place: what bounded caches are compared with.

    Args:
        room: tokens that it can hold.

    What a step reads is fixed by :meth:`plan` before it: on a CPU exactly the tokens there are, on
    a GPU the next multiple of :data:`BUCKET`, under a mask, so that a few graphs serve all steps.
    """

    layers: list[FullLayer]  # type: ignore[assignment]  # to the library, of any class

    def __init__(self, config: PreTrainedConfig, room: int, device: torch.device) -> None:
        self.masked = device.type == "cuda"
        self.room = -(-room // BUCKET) * BUCKET if self.masked else room
        self.position = torch.full((1,), -1, device=device)  # of the newest token
        self.visible = torch.zeros(1, 1, 1, self.room, dtype=torch.bool, device=device)
        self.reads = 0
        count = config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[FullLayer(self) for _ in range(count)])

    def plan(self, length: int) -> int:
        """Prepare for steps with ``length`` tokens in the cache; equal answers share a graph."""
        self.reads = -(-length // BUCKET) * BUCKET if self.masked else length
        return self.reads

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Count new tokens once, then see :meth:`FullLayer.update`.

        Raises:
            ConfigError: no room for them, or a second prompt.
        """
        length = key_states.shape[2]
        if layer_idx == 0:
            seen = self.layers[0].get_seq_length()
            if seen + length > self.room:
                raise ConfigError(f"the full cache has room for {self.room} tokens only.")
            if length > 1 and seen:
                raise ConfigError(
                    f"the full cache has already read a prompt ({seen} tokens): call rewind() "
                    "before another."
                )
            if length > 1:
                self.visible[..., :length] = True
            self.position += length
            if length == 1:
                self.visible.index_fill_(-1, self.position, True)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def rewind(self) -> None:
        """Forget everything but keep the tensors, which a captured graph reads."""
        self.position.fill_(-1)
        self.visible.zero_()
        for layer in self.layers:
            layer.seen = 0
