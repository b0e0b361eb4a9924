"""Attention masks as a bounded cache and attached policies read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask

from ..errors import ConfigError


def as_boolean(mask: torch.Tensor) -> torch.Tensor:
    """Return an attention mask as True where visible; additive masks are 0 there."""
    return mask if mask.dtype == torch.bool else mask > -1


def pads_right(mask: torch.Tensor) -> bool:
    """Tell whether a mask (B, 1, 1 or S, S) hides no more than later and last keys of a row."""
    real = mask[..., -1:, :]  # of the last query, which no later key is hidden from
    last = (real[..., 1:] <= real[..., :-1]).all() & real[..., 0].all()
    if mask.shape[2] > 1:
        last &= (mask == real.expand_as(mask).tril()).all()
    return bool(last)


def expanded_mask(
    mask: torch.Tensor | None, queries: int, keys: int, device: torch.device
) -> torch.Tensor | None:
    """Return what :func:`less_mask` leaves implicit, for the last ``queries`` tokens.

    None where ``is_causal`` says everything.
    """
    if queries == 1 or (mask is None and queries == keys):
        return mask
    if mask is not None and mask.shape[2] != 1:
        return mask
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return causal if mask is None else causal & mask


def less_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Make masks as the library asks, none of queries x keys where the mask is causal.

    Returns:
        Which keys are real, bool (B, 1, 1, keys), or None if all are; causality is implied. The
        library's full mask where there is more to say: packed sequences, a window shorter than
        the sequence, a static cache.
    """
    # Where the library lays something over a window, such as packed sequences, it allows no skip.
    whole_window = local_size is not None and kv_length <= local_size
    causal = mask_function is causal_mask_function or (
        whole_window and kwargs.get("allow_is_causal_skip", True)
    )
    if not causal or q_offset + q_length != kv_offset + kv_length:
        return sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            local_size,
            **kwargs,
        )
    real = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if real is None or bool(real.all()):
        return None
    return real[:, None, None, kv_offset : kv_offset + kv_length]


def left_padding(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Return how many of the first tokens are padding, (B,), from a mask (B, 1, 1, length).

    Raises:
        ConfigError: the mask hides anything else.
    """
    if mask.shape[2:] != (1, length):
        raise ConfigError("a bounded cache reads causal masks with padding only, no custom ones.")
    real = mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] > -1
    start = length - real.sum(-1)
    if not bool((real == (torch.arange(length, device=mask.device) >= start[:, None])).all()):
        raise ConfigError(
            "a bounded cache needs padding on the left (tokenizer.padding_side = 'left'), and a "
            "mask over all tokens since its last reset()."
        )
    return start
