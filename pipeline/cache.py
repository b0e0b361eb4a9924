"""The bounded cache for `generate`: slots, scores, H and z, replaced in place.

    model = enable(AutoModelForCausalLM.from_pretrained(...))
    model.generate(**inputs, past_key_values=LessCache(model.config, policy, kernels))

A layer holds ``policy.budget`` pairs for each sequence and key/value head between steps, whatever
the length, and with kernels the low-rank state of what was evicted. Baseline and Baseline+ are the
cache without kernels, +Performer and LESS with them; the full cache is the library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from .errors import ConfigError, unknown
from .kernels import Kernel
from .ops.decode import decode_backend
from .ops.low_rank import LowRankState
from .ops.packed import PackedKernel, PlainKernel, pack
from .ops.prompt import cut, full_attention, prompt_scores
from .ops.slots import Slots, by_head
from .policies import Policy
from .transformer.interface import NAME, AttendingLayer
from .transformer.masks import left_padding
from .transformer.shape import model_shape

Prefill = Literal["full", "policy"]
Observer = Callable[[torch.Tensor, torch.Tensor], None]
"""Gets evicted positions (B, U, E), -1 for none, and the first query that misses each, (B, E)."""

ABSORB_BLOCK = 256
"""Pairs of a cut prompt whose features are formed at once."""


class LessLayer(AttendingLayer):
    """One layer's slots and state."""

    def __init__(
        self, policy: Policy, kernel: PackedKernel | PlainKernel | None, prefill: Prefill
    ) -> None:
        super().__init__()
        self.policy = policy
        self.kernel = kernel
        self.prefill = prefill
        self.observer: Observer | None = None
        self.seen = 0
        self.unread = False  # an update whose attention has not come yet

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate everything this layer will ever hold.

        Raises:
            ConfigError: the kernel is on another device.
        """
        batch, groups, _, size = key_states.shape
        state = features = None
        if self.kernel is not None:
            if self.kernel.device != key_states.device:
                raise ConfigError(
                    f"kernels on {self.kernel.device} cannot serve a model on {key_states.device}."
                )
            rank, device = self.kernel.kernel_size, key_states.device
            state = LowRankState.zeros(batch, groups, rank, size, device)
            if decode_backend(device).KEEPS_FEATURES:
                places = self.policy.budget + 1
                features = torch.zeros(batch, groups, places, rank, device=device)
        start = torch.zeros(batch, dtype=torch.int32, device=key_states.device)
        self._hold(Slots.empty(key_states, self.policy), state, features, start)

    def _hold(
        self,
        slots: Slots,
        state: LowRankState | None,
        features: torch.Tensor | None,
        start: torch.Tensor,
    ) -> None:
        """Own these tensors.

        Args:
            features: psi of the pair in each slot, (B, G, C + 1, R), where a backend keeps it.
            start: (B,), the padding before each sequence.
        """
        self.slots, self.state, self.features, self.start = slots, state, features, start
        self.position = self.seen - start  # (B,) of the next token, counted on the device
        self.keys, self.values = slots.keys, slots.values
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mark the new keys (B, G, T, D) for the model's attention to find.

        Raises:
            ConfigError: the last keys were never read, or a second prompt arrives in one piece.
        """
        if self.unread:
            raise ConfigError(
                "the model's attention does not read this cache; "
                "call pipeline.transformer.interface.enable(model) first."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.seen and key_states.shape[2] > 1 and self.prefill == "full":
            raise ConfigError(
                f"the cache has already read a prompt ({self.seen} tokens): call reset() before "
                "another, or use prefill='policy' to read one in pieces."
            )
        if key_states.shape[0] != self.start.shape[0]:
            raise ConfigError(
                f"the cache holds {self.start.shape[0]} sequences, not {key_states.shape[0]}: "
                "call reset() before another batch."
            )
        self.unread = True
        return super().update(key_states, value_states)

    @torch.no_grad()
    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return attention of new tokens over this layer, which takes them in.

        Args:
            q: (B, H, T, D). k, v: (B, G, T, D), as :meth:`update` returned them.
            mask: from :func:`pipeline.transformer.masks.less_mask`.

        Returns:
            (B, H, T, D), float32 or q's dtype. No gradient flows through a cache.

        Raises:
            ConfigError: a mask that says more than padding on the left; an empty prompt.
        """
        self.unread = False
        length = q.shape[2]
        if mask is not None and (length > 1 or self.prefill == "policy" or not self.seen):
            self.start.copy_(left_padding(mask, self.seen + length))
            self.position.copy_(self.seen - self.start)
        if self.prefill == "full" and not self.seen:
            if bool((self.start >= length).any()):
                raise ConfigError("a prompt consists of padding only.")
            out = self._read_prompt(q, k, v)
        else:
            out = self.read_tokens(q, k, v)
        self.seen += length
        self.position += length
        return out

    def _read_prompt(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend in full over a prompt, and cut once at its end."""
        length = q.shape[2]
        scores = prompt_scores(q, k, self.start, self.policy)
        kept, gone = cut(scores, self.start, length, self.policy)
        start = self.start[:, None, None]
        self.slots.fill(k, v, scores, kept, (kept - start).clamp(min=-1).to(torch.int32))
        if self.state is not None and self.kernel is not None:
            for i in range(0, gone.shape[-1], ABSORB_BLOCK):
                index = by_head(gone[..., i : i + ABSORB_BLOCK], k.shape[1])[..., None]
                rows = index.expand(-1, -1, -1, k.shape[-1])
                real = index >= start[..., None]
                self.state.absorb(self.kernel.psi(k.gather(2, rows)) * real, v.gather(2, rows))
        if self.features is not None and self.kernel is not None:
            for i in range(0, kept.shape[-1], ABSORB_BLOCK):
                block = slice(i, min(i + ABSORB_BLOCK, kept.shape[-1]))
                self.features[:, :, block] = self.kernel.psi(self.slots.keys[:, :, block])
        if self.observer is not None:
            times = (length - self.start)[:, None].expand(-1, gone.shape[-1])
            self.observer((gone - start).clamp(min=-1), times)
        return full_attention(q, k, v, self.start)

    def read_tokens(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Read tokens one after another under the policy, not yet counted as read."""
        ops, now = decode_backend(q.device), (self.position, self.policy)
        if self.state is None or self.kernel is None:
            decoded = ops.decode(self.slots, q, k, v, *now)
            out, positions = decoded.out, decoded.positions
        else:
            out, positions = ops.step(
                self.slots, self.features, self.state, q, k, v, self.kernel, *now
            )
        if self.observer is not None:
            times = self.position[:, None] + torch.arange(1, q.shape[2] + 1, device=q.device)
            self.observer(positions, times)
        return out

    def rewind(self) -> None:
        """Forget everything but keep the tensors, which a captured CUDA graph reads."""
        self.unread, self.seen = False, 0
        if not self.is_initialized:
            return
        self.slots.clear()
        held = [] if self.state is None else [self.state.H, self.state.z]
        for tensor in (*held, self.start, self.position):
            tensor.zero_()

    def memory(self) -> dict[str, int]:
        """Return bytes held, by part; see :meth:`LessCache.memory`."""
        if not self.is_initialized:
            return {"slots": 0, "scores": 0, "state": 0, "features": 0}
        slots, state = self.slots, self.state
        parts = {
            "slots": [slots.keys, slots.values],
            "scores": [slots.scores, slots.positions, slots.free, self.start],
            "state": [] if state is None else [state.H, state.z],
            "features": [] if self.features is None else [self.features],
        }
        return {name: sum(x.nbytes for x in tensors) for name, tensors in parts.items()}

    # --- the library's contract ---------------------------------------------------------------

    def get_seq_length(self) -> int:
        """Return the tokens read, padding included: positions of new tokens follow from it."""
        return self.seen

    def reset(self) -> None:
        """Forget everything; the next prompt may have another batch size."""
        self.keys = self.values = None
        self.is_initialized = self.unread = False
        self.seen = 0

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep sequences ``indices`` (B',), in that order, repeats allowed."""
        if not self.is_initialized:
            return
        indices = indices.to(self.start.device)
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        state = self.state
        if state is not None:
            state = LowRankState(state.H.index_select(0, indices), state.z.index_select(0, indices))
        features = None if self.features is None else self.features.index_select(0, indices)
        start = self.start.index_select(0, indices)
        self._hold(self.slots.select(indices), state, features, start)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let beams continue from sequences ``beam_idx`` (B,)."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence ``repeats`` times."""
        if self.is_initialized:
            batch = torch.arange(self.start.shape[0], device=self.start.device)
            self.batch_select_indices(batch.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last ``-tokens_to_remove`` tokens, where nothing has followed from them.

        Raises:
            ConfigError: something was evicted, or the tokens' queries changed scores.
        """
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        if tokens_to_remove > 0:
            raise ConfigError("crop() takes the number of tokens to remove as a negative number.")
        left = self.seen + tokens_to_remove - self.start
        if self.policy.needs_scores or int((self.seen - self.start).max()) > self.policy.budget:
            raise ConfigError(
                "a bounded cache cannot take tokens back once it has evicted or scored; "
                "assisted decoding needs the full cache."
            )
        self.slots.positions.masked_fill_(self.slots.positions >= left[:, None, None], -1)
        self.slots.free.copy_(left.clamp(min=0)[:, None].expand_as(self.slots.free))
        self.seen = max(self.seen + tokens_to_remove, 0)
        self.position.copy_(self.seen - self.start)


class LessCache(Cache):
    """A cache of ``policy.budget`` pairs a sequence and head, and the low-rank state of the rest.

    Args:
        config: of a model that :func:`pipeline.transformer.interface.enable` has prepared.
        policy: of every layer.
        kernels: one per layer (LESS, +Performer), or None (the sparse policy alone).
        prefill: ``full``: the prompt comes in one forward pass, sees itself in full, and one cut
            follows. ``policy``: every token is read under the policy, in pieces of any length, so
            memory does not depend on the prompt (``prefill_chunk_size`` of `generate`).

    Raises:
        ConfigError: kernels of another number of layers, other heads or another head size;
            unknown ``prefill``.
    """

    layers: list[LessLayer]  # type: ignore[assignment]  # to the library, of any class

    def __init__(
        self,
        config: PreTrainedConfig,
        policy: Policy,
        kernels: Sequence[Kernel] | None = None,
        prefill: Prefill = "full",
    ) -> None:
        if prefill not in get_args(Prefill):
            raise unknown("prefill", prefill, get_args(Prefill))
        self.config = config.get_text_config(decoder=True)
        count = self.config.num_hidden_layers
        if kernels is not None and len(kernels) != count:
            raise ConfigError(
                f"the model has {count} layers, but there are {len(kernels)} kernels."
            )
        packed = [check_kernel(kernel, self.config) for kernel in kernels or ()]
        super().__init__(
            layers=[LessLayer(policy, packed[i] if packed else None, prefill) for i in range(count)]
        )

    @property
    def _is_user_defined(self) -> bool:
        return True

    @_is_user_defined.setter
    def _is_user_defined(self, value: bool) -> None:
        # `generate` sets this once, before it reads a prompt: the one moment at which a cache can
        # know that another prompt begins.
        if self.get_seq_length() > 0:
            raise ConfigError(
                f"the cache has already read {self.get_seq_length()} tokens: call reset() before "
                "another generate()."
            )

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`LessLayer.update`.

        Raises:
            ConfigError: the model's attention is not routed through this project's.
        """
        if self.config._attn_implementation != NAME:
            raise ConfigError(
                f"the model's attention ('{self.config._attn_implementation}') gives a bounded "
                "cache no queries; call pipeline.transformer.interface.enable(model) first."
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def rewind(self) -> None:
        """See :meth:`LessLayer.rewind`."""
        for layer in self.layers:
            layer.rewind()

    def memory(self) -> dict[str, int]:
        """Return bytes held by all layers, by part.

        They are slots (keys, values), scores (and positions), state (H, z), and features, psi of
        each slot's pair, where a backend keeps them.
        """
        layers = [layer.memory() for layer in self.layers]
        return {part: sum(layer[part] for layer in layers) for part in layers[0]}


def check_kernel(kernel: Kernel, config: PreTrainedConfig) -> PackedKernel | PlainKernel:
    """Return the form a cache runs, after a try on zeros shows that it fits the model's heads.

    Raises:
        ConfigError: it does not.
    """
    shape = model_shape(config)
    heads, groups, size = shape.num_heads, shape.num_kv_heads, shape.head_dim
    packed = pack(kernel)
    rank = packed.kernel_size
    try:
        phi = packed.phi(torch.zeros(1, heads, 1, size, device=packed.device))
        psi = packed.psi(torch.zeros(1, groups, 1, size, device=packed.device))
        fits = phi.shape == (1, heads, 1, rank) and psi.shape == (1, groups, 1, rank)
    except RuntimeError:
        fits = False
    if not fits:
        raise ConfigError(
            f"the kernel does not fit the model: {heads} query heads, {groups} key/value heads of "
            f"size {size}, {rank} features a token; it was trained for another model."
        )
    return packed
