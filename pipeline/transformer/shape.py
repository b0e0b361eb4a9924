"""The numbers of a model that caches and kernels depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Heads:
    """The head layout that kernels are built for: H, G and D of every layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that caches and kernels depend on."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    context: int

    @property
    def heads(self) -> Heads:
        """The head layout of every layer."""
        return Heads(self.num_heads, self.num_kv_heads, self.head_dim)


def model_shape(config: PreTrainedConfig) -> Shape:
    """Return the shape of a model from its config."""
    heads = config.num_attention_heads
    if config.model_type == "falcon":  # its num_kv_heads only counts in the new layout
        shared = config.multi_query and not config.new_decoder_architecture
        kv_heads = 1 if shared else config.num_kv_heads
    else:
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Shape(
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden_size=config.hidden_size,
        context=config.max_position_embeddings,
    )
