"""Attention of `transformers` models replaced from outside: attach, don't fork.

Models stay the library's classes. :func:`attach` puts a policy (and kernels) on every attention
layer for teacher-forced evaluation; :func:`record` hands every layer's q, k, v to a callback. Both
work through the library's attention interface, and through a thin adapter for Falcon, whose
attention does not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from pipeline.errors import ConfigError
from pipeline.eviction import Scores, bounded_attention, evicted_at
from pipeline.kernels import Kernel
from pipeline.policies import Policy
from pipeline.synthesis import correct, synthesize

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
    """The library's attention signature; without a handler on ``module``, plain causal attention.

    Raises:
        ConfigError: left padding, a sliding window shorter than the sequence, or a logit scale
            other than 1/sqrt(head size), none of which a handler can honour.
    """
    handler: Handler | None = getattr(module, "less_handler", None)
    if handler is None:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling,
            is_causal=attention_mask is None and query.shape[2] > 1, enable_gqa=True,
        )  # fmt: skip
        return out.transpose(1, 2).contiguous(), None
    if key.shape[2] != query.shape[2]:
        raise ConfigError("an attached policy reads whole sequences: pass use_cache=False.")
    if attention_mask is not None and not bool((attention_mask[..., 0] > -1).all()):
        raise ConfigError("an attached policy cannot read left-padded batches; pad on the right.")
    if scaling is not None and abs(scaling * query.shape[-1] ** 0.5 - 1) > 1e-3:
        raise ConfigError(f"logits are scaled by {scaling}; only 1/sqrt(head size) is supported.")
    window = kwargs.get("sliding_window")
    if window is not None and query.shape[2] > window:
        raise ConfigError(f"the model attends within a sliding window of {window} tokens.")
    out = handler(query, key, value)
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, less_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _falcon_forward(  # type: ignore[no-untyped-def]
    self, hidden_states, alibi, attention_mask, position_ids=None, layer_past=None,
    use_cache=False, output_attentions=False, position_embeddings=None, **kwargs,
):  # fmt: skip
    """Falcon's attention with the core replaced by :func:`less_attention`."""
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    if alibi is not None:
        raise ConfigError("Falcon models with ALiBi positions are not supported (alibi: true).")
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
    """The model's self-attention modules in layer order."""
    found = [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Attention")
        and getattr(module, "layer_idx", None) is not None
    ]
    return sorted(found, key=lambda module: module.layer_idx)  # type: ignore[arg-type, return-value]


def output_projection(layer: nn.Module) -> nn.Linear:
    """The linear map after a layer's heads are joined, whatever the model calls it."""
    for name in ("o_proj", "dense", "out_proj"):
        if hasattr(layer, name):
            return getattr(layer, name)  # type: ignore[no-any-return]
    raise ConfigError(f"{type(layer).__name__} has no output projection this project knows.")


@contextmanager
def _handled(model: PreTrainedModel, handlers: Sequence[Handler]) -> Iterator[None]:
    """Route every layer's attention through its handler for the duration of the context."""
    layers = attention_layers(model)
    if len(layers) != len(handlers):
        raise ConfigError(f"the model has {len(layers)} attention layers, not {len(handlers)}.")
    before = model.config._attn_implementation
    adapted = [layer for layer in layers if type(layer).__name__ in ADAPTERS]
    if not adapted:
        model.set_attn_implementation(NAME)
    try:
        for layer, handler in zip(layers, handlers, strict=True):
            layer.less_handler = handler  # type: ignore[assignment]
        for layer in adapted:
            layer.forward = MethodType(ADAPTERS[type(layer).__name__], layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("less_handler", None)
            layer.__dict__.pop("forward", None)
        if not adapted:
            model.set_attn_implementation(before)


def policy_attention(policy: Policy, kernel: Kernel | None, scores: Scores) -> Handler:
    """Attention of a whole sequence under ``policy``, corrected by ``kernel`` if there is one."""

    def handler(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if scores == "full":
            return synthesize(q, k, v, evicted_at(q, k, policy, scores), kernel)
        times, out, lse = bounded_attention(q, k, v, policy)
        return out if kernel is None else correct(q, k, v, times, kernel, out, lse)

    return handler


@contextmanager
def attach(
    model: PreTrainedModel,
    policy: Policy,
    kernels: Sequence[Kernel] | None = None,
    scores: Scores = "full",
) -> Iterator[PreTrainedModel]:
    """Evaluate ``model`` teacher-forced as if its cache followed ``policy``, within a ``with``.

    Args:
        policy: applied to every layer and row.
        kernels: one per layer, for LESS or +Performer; None for the sparse policy alone.
        scores: see :func:`pipeline.eviction.evicted_at`.

    Raises:
        ConfigError: a wrong number of kernels, or a model this cannot be done to.
    """
    each: Sequence[Kernel | None] = kernels or [None] * len(attention_layers(model))
    with _handled(model, [policy_attention(policy, kernel, scores) for kernel in each]):
        yield model


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

    with _handled(model, [recorder(i) for i in range(len(attention_layers(model)))]):
        yield model
