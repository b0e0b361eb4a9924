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
from transformers import PreTrainedModel

from ..cache import LessCache
from .full_cache import FullCache

SHORT = 16
"""Tokens of a prompt that warm up a CPU, where nothing is shaped to the prompt."""
WARM_UP = 3
"""Steps run one by one before the first is captured."""


class Engine:
    """Prompts of one shape continued by one model and one cache.

    Args:
        model: prepared by :func:`pipeline.transformer.interface.enable`.
        cache: fresh; a :class:`FullCache` with room for all tokens, or a ``LessCache``.
        batch: sequences.
        temperature: of sampling, by torch's generator of the device; 0 is greedy.

    Attributes:
        seconds: of the last :meth:`generate`: its prompt (and first token), and all other steps.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: FullCache | LessCache,
        batch: int,
        temperature: float = 0.0,
    ) -> None:
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
        """Return the next token of each sequence, (B, 1), of logits (B, 1, V); on the device."""
        logits = logits[:, -1].float()
        if self.temperature > 0:
            # The largest of logits and Gumbel noise is a sample of their softmax.
            noise = torch.empty_like(logits).exponential_().log()
            logits = logits / self.temperature - noise
        return logits.argmax(-1, keepdim=True)

    def _step(self) -> None:
        """Decode one token of every sequence; all it reads and writes are tensors that stay."""
        out = self.model(self.tokens, past_key_values=self.cache, position_ids=self.position)
        self.tokens.copy_(self.sample(out.logits))
        self.position += 1

    def _plan(self, length: int) -> int:
        """Return which graph a step takes that leaves ``length`` tokens in the cache."""
        return self.cache.plan(length) if isinstance(self.cache, FullCache) else 0

    def _capture(self, length: int) -> None:
        """Capture the graph of a step, if there is none; that runs nothing on the device."""
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
        """Do what happens once: compile and tune kernels; on a GPU allocate and capture too."""
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
