"""A decode loop in the spirit of gpt-fast: static buffers, one CUDA graph a step, no host in it.

    engine = Engine(enable(model), LessCache(model.config, policy, kernels), batch=8)
    engine.generate(prompt, new_tokens=100)

The same loop runs every cache, so that what is compared are caches: bounded ones, and
:class:`FullCache`, the library's scaled-dot-product attention over pairs written in place. Models
are those of :func:`pipeline.attention.enable`. On a CPU the loop is the same, without graphs.

Prompts of a batch are of one length. There is no end token: what is timed is how long it takes.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from pipeline.cache import LessCache
from pipeline.errors import ConfigError

BUCKET = 1024
"""On a GPU a full cache reads a multiple of these tokens, the unwritten ones masked: one graph."""
SHORT = 16
"""Tokens of a prompt that warm up a CPU, where nothing is shaped to the prompt."""
WARM_UP = 3
"""Steps run one by one before the first is captured."""


class FullLayer(CacheLayerMixin):
    """All pairs of one layer, in buffers of ``room`` tokens."""

    is_croppable = False

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

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mark the new keys (B, G, T, D) for :func:`~pipeline.attention.less_attention`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        key_states.less_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """A prompt, or one token after it: q (B, H, T, D), k, v (B, G, T, D) to (B, H, T, D)."""
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
            self.keys[:, :, : cache.reads], self.values[:, :, : cache.reads],
            attn_mask=cache.visible[..., : cache.reads] if cache.masked else None,
        )  # fmt: skip
        return out.view(q.shape)

    def get_seq_length(self) -> int:
        """Tokens read."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the library's mask, which nothing here reads."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self.cache.room


class FullCache(Cache):
    """The full cache of a model, in place: what bounded caches are compared with.

    Args:
        room: tokens that it can hold.

    What a step reads is fixed by :meth:`plan` before it: on a CPU exactly the tokens there are, on
    a GPU the next multiple of :data:`BUCKET`, under a mask, so that a few graphs serve all steps.
    """

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
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
        *args: Any, **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Count new tokens once, then see :meth:`FullLayer.update`.

        Raises:
            ConfigError: no room for them, or a second prompt.
        """
        length = key_states.shape[2]
        if layer_idx == 0:
            seen = self.layers[0].get_seq_length()  # type: ignore[union-attr]
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
            layer.seen = 0  # type: ignore[union-attr]


class Engine:
    """Prompts of one shape continued by one model and one cache.

    Args:
        model: prepared by :func:`pipeline.attention.enable`.
        cache: fresh; a :class:`FullCache` with room for all tokens, or a ``LessCache``.
        batch: sequences.
        temperature: of sampling, by torch's generator of the device; 0 is greedy.

    Attributes:
        seconds: of the last :meth:`generate`: its prompt (and first token), and all other steps.
    """

    def __init__(
        self, model: PreTrainedModel, cache: FullCache | LessCache, batch: int,
        temperature: float = 0.0,
    ) -> None:  # fmt: skip
        self.model, self.cache, self.temperature = model, cache, temperature
        device = model.device
        self.graphed = device.type == "cuda"
        self.tokens = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.graphs: dict[int, Any] = {}
        self.pool: Any = None
        self.length = 0  # tokens in the cache
        self.seconds = (0.0, 0.0)

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each sequence, (B, 1), of logits (B, 1, V); on the device."""
        logits = logits[:, -1].float()
        if self.temperature > 0:
            # The largest of logits and Gumbel noise is a sample of their softmax.
            noise = torch.empty_like(logits).exponential_().log()
            logits = logits / self.temperature - noise
        return logits.argmax(-1, keepdim=True)

    def _step(self) -> None:
        """One token of every sequence; all it reads and writes are tensors that stay."""
        out = self.model(self.tokens, past_key_values=self.cache, position_ids=self.position)
        self.tokens.copy_(self.sample(out.logits))
        self.position += 1

    def _plan(self, length: int) -> int:
        """Which graph a step takes that leaves ``length`` tokens in the cache."""
        return self.cache.plan(length) if isinstance(self.cache, FullCache) else 0

    def _capture(self, length: int) -> None:
        """Have the graph of a step; capturing runs nothing on the device."""
        key = self._plan(length)
        if key not in self.graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                self._step()
            self.graphs[key], self.pool = graph, graph.pool()

    @torch.no_grad()
    def read(self, prompt: torch.Tensor) -> None:
        """Begin anew with a prompt (B, P), and sample the token after it."""
        self.cache.rewind()
        self.length = prompt.shape[1]
        self._plan(self.length)
        out = self.model(prompt, past_key_values=self.cache, logits_to_keep=1)
        self.tokens.copy_(self.sample(out.logits))
        self.position.fill_(self.length)

    @torch.no_grad()
    def step(self) -> None:
        """Continue every sequence by a token, in :attr:`tokens`."""
        self.length += 1
        key = self._plan(self.length)
        if key in self.graphs:
            self.graphs[key].replay()
        else:
            self._step()

    @torch.no_grad()
    def warm_up(self, prompt: torch.Tensor, new_tokens: int) -> None:
        """What happens once: compiling and tuning kernels; on a GPU allocation and graphs too."""
        self.read(prompt if self.graphed else prompt[:, :SHORT])
        for _ in range(min(WARM_UP, new_tokens - 1)):
            self.step()
        if self.graphed:
            for length in range(prompt.shape[1] + 1, prompt.shape[1] + new_tokens):
                self._capture(length)
        self.synchronize()

    def generate(self, prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """Continue a prompt (B, P): new tokens (B, new_tokens)."""
        started = time.perf_counter()
        out = self.tokens.new_empty(len(prompt), new_tokens)
        self.read(prompt)
        out[:, :1] = self.tokens
        self.synchronize()
        read = time.perf_counter()
        for i in range(1, new_tokens):
            self.step()
            out[:, i : i + 1] = self.tokens
        self.synchronize()
        self.seconds = read - started, time.perf_counter() - read
        return out

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.graphed:
            torch.cuda.synchronize(self.model.device)
