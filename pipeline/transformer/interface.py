"""Reach the attention of `transformers` models from outside.

Models stay the library's classes. :func:`enable` routes their attention through
:func:`less_attention`, by the library's attention interface, or by a thin adapter for Falcon, whose
attention does not use it; :func:`record` hands every layer's q, k, v to a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from ..errors import ConfigError
from .masks import as_boolean, expanded_mask, less_mask, pads_right

NAME = "less"
Handler = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(q (B, H, S, D), k, v (B, G, S, D)) of a whole sequence to the output (B, H, S, D)."""


def less_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as a model asks, by the library's attention signature.

    Three readers, in this order: a handler on ``module`` (:func:`attach`, :func:`record`); the
    cache layer that marked ``key`` (:class:`AttendingLayer`); otherwise plain causal
    attention, so that an enabled model still works with any other cache.

    Raises:
        ConfigError: what a handler or a bounded cache cannot honour: a logit scale other than
            1/sqrt(head size), soft caps or sinks of the logits, more tokens than a sliding window
            covers, padding on the left of a handler or anywhere else of a cache.
    """
    handler: Handler | None = getattr(module, "less_handler", None)
    layer = getattr(key, "less_layer", None)
    if handler is not None:
        _refuse(query, key.shape[2], scaling, kwargs)
        if key.shape[2] != query.shape[2]:
            raise ConfigError("an attached policy reads whole sequences: pass use_cache=False.")
        if attention_mask is not None and not pads_right(as_boolean(attention_mask)):
            raise ConfigError(
                "an attached policy reads causal masks with padding on the right, no left-padded "
                "batches and no custom masks."
            )
        out = handler(query, key, value)
    elif layer is not None:
        _refuse(query, layer.get_seq_length() + query.shape[2], scaling, kwargs)
        out = layer.attend(query, key, value, attention_mask)
    else:
        mask = expanded_mask(attention_mask, query.shape[2], key.shape[2], query.device)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            scale=scaling,
            is_causal=mask is None and query.shape[2] > 1,
            enable_gqa=True,
        )
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


def _refuse(
    query: torch.Tensor, length: int, scaling: float | None, options: dict[str, Any]
) -> None:
    """Raise for logits that a policy or a kernel would not see as the model does."""
    if scaling is not None and abs(scaling * query.shape[-1] ** 0.5 - 1) > 1e-3:
        raise ConfigError(f"logits are scaled by {scaling}; only 1/sqrt(head size) is supported.")
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise ConfigError(f"the model's attention uses {name}, which is not supported.")
    window = options.get("sliding_window")
    if window is not None and length > window:
        raise ConfigError(
            f"the model attends within a sliding window of {window} tokens; {length} are too many."
        )


class AttendingLayer(CacheLayerMixin):
    """A cache layer that attends itself, since it needs the queries that a cache is not given.

    ``update`` only marks the new keys with the layer; the model's attention finds the mark and
    calls :meth:`attend`.
    """

    is_croppable = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate what the layer will ever hold; nothing, unless it says so."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mark the new keys (B, G, T, D) for the model's attention to find."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        key_states.less_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return attention of new tokens q (B, H, T, D), whose k, v (B, G, T, D) it takes in."""
        raise NotImplementedError

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the mask: as if everything read were held."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return that there is no maximum."""
        return -1


AttentionInterface.register(NAME, less_attention)
AttentionMaskInterface.register(NAME, less_mask)


def _falcon_forward(  # type: ignore[no-untyped-def]
    self,
    hidden_states,
    alibi,
    attention_mask,
    position_ids=None,
    layer_past=None,
    use_cache=False,
    output_attentions=False,
    position_embeddings=None,
    **kwargs,
):
    """Run Falcon's attention with the core replaced by :func:`less_attention`."""
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    query, key, value = self._split_heads(self.query_key_value(hidden_states))
    if self.new_decoder_architecture:  # the library repeats shared heads; undo it
        step = self.num_heads // self.num_kv_heads
        key, value = key[:, :, ::step], value[:, :, ::step]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    cos, sin = position_embeddings
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    out, _ = less_attention(self, query, key, value, attention_mask)
    return self.dense(out.flatten(2)), None


ADAPTERS: dict[str, Callable[..., Any]] = {"FalconAttention": _falcon_forward}
"""Attention classes that do not use the library's interface, and their replacement forward."""


def attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the model's self-attention modules in layer order."""
    modules = [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Attention")
        and getattr(module, "layer_idx", None) is not None
    ]
    return sorted(modules, key=lambda module: module.layer_idx)  # type: ignore[arg-type, return-value]


def output_projection(layer: nn.Module) -> nn.Linear:
    """Return the linear map after a layer's heads are joined, whatever the model calls it."""
    for name in ("o_proj", "dense", "out_proj"):
        if hasattr(layer, name):
            return getattr(layer, name)  # type: ignore[no-any-return]
    raise ConfigError(f"{type(layer).__name__} has no output projection this project knows.")


def _set_implementation(model: PreTrainedModel, name: str) -> None:
    """Set the attention implementation, also of models that only an adapter reaches.

    The library's setter refuses those, yet their masks follow this name.
    """
    if any(type(layer).__name__ in ADAPTERS for layer in attention_layers(model)):
        model.config._attn_implementation = name
    else:
        model.set_attn_implementation(name)


def enable(model: PreTrainedModel) -> PreTrainedModel:
    """Route the model's attention through :func:`less_attention`, in place, for good.

    What a :class:`pipeline.cache.LessCache` needs. With any other cache, or none, the model
    computes what it did before.

    Raises:
        ConfigError: the model's attention can be reached neither through the library's attention
            interface nor by an adapter of :data:`ADAPTERS`, or adds ALiBi biases.
    """
    config = model.config
    if getattr(config, "alibi", False):
        raise ConfigError("models with ALiBi positions are not supported (alibi: true).")
    for layer in attention_layers(model):
        if type(layer).__name__ in ADAPTERS:
            layer.forward = MethodType(ADAPTERS[type(layer).__name__], layer)
    _set_implementation(model, NAME)
    if config._attn_implementation != NAME:
        raise ConfigError(
            f"{type(model).__name__} does not use the library's attention interface and has no "
            f"adapter here; adapters: {', '.join(sorted(ADAPTERS))}."
        )
    return model


@contextmanager
def handled(model: PreTrainedModel, handlers: Sequence[Handler]) -> Iterator[None]:
    """Route every layer's attention through its handler for the duration of the context."""
    layers = attention_layers(model)
    if len(layers) != len(handlers):
        raise ConfigError(f"the model has {len(layers)} attention layers, not {len(handlers)}.")
    before = model.config._attn_implementation
    attributes = ("forward", "less_handler")
    held = [{n: layer.__dict__[n] for n in attributes if n in layer.__dict__} for layer in layers]
    enable(model)
    try:
        for layer, handler in zip(layers, handlers, strict=True):
            layer.less_handler = handler  # type: ignore[assignment]
        yield
    finally:
        for layer, earlier in zip(layers, held, strict=True):
            for name in attributes:
                layer.__dict__.pop(name, None)
            layer.__dict__.update(earlier)
        _set_implementation(model, before)


@contextmanager
def record(
    model: PreTrainedModel,
    receive: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None],
) -> Iterator[PreTrainedModel]:
    """Run full attention and hand (layer, q, k, v), after rotary embedding, to ``receive``."""

    def recorder(index: int) -> Handler:
        def handler(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            receive(index, q, k, v)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return handler

    with handled(model, [recorder(i) for i in range(len(attention_layers(model)))]):
        yield model
