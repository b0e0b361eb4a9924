"""What a decode step is made of: operators timed side by side, and the parts of a step.

Bytes are those that must move at the least, inputs read once and outputs written once; over the
bandwidth of copying, measured in the same run, they give the least time, the floor.

The parts of a step (the paper's Table 8) are differences between whole stacks of layers, each with
one thing left out (:data:`ABLATIONS`), so that no part has to be cut out of a fused launch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..cache import LessCache, LessLayer
from ..decoding.full_cache import FullCache
from ..kernels import get_kernel
from ..ops.maps import token_maps
from ..ops.packed import PackedKernel, PlainKernel, pack
from ..policies import Policy
from ..transformer.interface import AttendingLayer
from ..transformer.shape import model_shape
from .timing import interleaved

Step = Callable[[], object]
Kernels = Sequence[PackedKernel | PlainKernel]

TINY = 1
"""Width R' of kernels whose maps cost next to nothing."""
COPIED = {"cpu": 2**27, "cuda": 2**30}
"""Bytes of the tensor whose copying measures bandwidth; far more than any processor's cache."""
ROUNDS = 15


@dataclass(frozen=True)
class Operator:
    """Something to time: what it runs, bytes it must move, operations of its formula."""

    name: str
    run: Step
    moved: int
    operations: int


def untrained_kernels(name: str, model: PreTrainedModel, **sizes: int) -> Kernels:
    """Return packed kernels of every layer.

    How long they take does not depend on what they learned.

    Scalars are one, so that what is remembered has weight.
    """
    shape = model_shape(model.config)
    kernels = []
    for seed in range(shape.num_layers):
        kernel = get_kernel(
            name,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            seed=seed,
            compute_dtype=model.dtype,
            **sizes,
        )
        for scalar in ("s1", "s2"):
            if hasattr(kernel, scalar):
                torch.nn.init.ones_(getattr(kernel, scalar))
        kernels.append(pack(kernel.eval().requires_grad_(False).to(model.device)))
    return kernels


def random_token(model: PreTrainedModel, batch: int) -> tuple[torch.Tensor, ...]:
    """Return q (B, H, 1, D) and k, v (B, G, 1, D) of the model's type."""
    shape = model_shape(model.config)
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    return tuple(
        torch.randn(batch, count, 1, shape.head_dim, device=model.device).to(model.dtype)
        for count in heads
    )


def filled(cache: LessCache, batch: int, context: int, like: torch.Tensor) -> LessCache:
    """Return a bounded cache as after ``context`` tokens of random pairs, for keys ``like``."""
    for layer in cache.layers:
        assert isinstance(layer, LessLayer)
        layer.seen = context
        layer.lazy_initialization(like, like)
        slots, budget = layer.slots, layer.policy.budget
        slots.keys.normal_()
        slots.values.normal_()
        slots.positions[..., :budget] = torch.arange(
            context - budget, context, dtype=torch.int32, device=like.device
        )
        slots.scores.uniform_()
        slots.free.fill_(budget)
    return cache


def attention_step(
    cache: LessCache | FullCache, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Step:
    """Return the attention of every layer, one after the other, over what ``cache`` holds."""

    def run() -> None:
        for index, layer in enumerate(cache.layers):
            layer.attend(q, *cache.update(k, v, index), None)

    return run


def pinned_step(cache: LessCache, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Step:
    """Do as :func:`attention_step`, each time as the first: positions do not move on."""
    starts = [(layer.slots.positions.clone(), layer.slots.free.clone()) for layer in cache.layers]

    def run() -> None:
        for layer, (positions, free) in zip(cache.layers, starts, strict=True):
            layer.slots.positions.copy_(positions)
            layer.slots.free.copy_(free)
            layer.read_tokens(q, k, v)

    return run


def ready(step: Step, device: torch.device) -> Step:
    """Return the step after a warm-up; on a GPU as one CUDA graph, as in a decode loop."""
    for _ in range(3):
        step()
    if device.type != "cuda":
        return step
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize(device)

    return replay


@torch.no_grad()
def timed(
    steps: Mapping[str, Step], device: torch.device, rounds: int = ROUNDS
) -> dict[str, float]:
    """Return median seconds of each step over rounds in which they take turns."""
    prepared = {name: ready(step, device) for name, step in steps.items()}
    seconds = interleaved(prepared, rounds)
    return {name: statistics.median(times) for name, times in seconds.items()}


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes a second of copying, read and written both counted."""
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / timed({"copy": lambda: target.copy_(source)}, device)["copy"]


# --- operators and the floor ------------------------------------------------------------------


class Skipped(AttendingLayer):
    """Attention left out: a layer passes its queries on."""

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the queries."""
        return q

    def get_seq_length(self) -> int:
        """Answer as if something had been read."""
        return 1


def products(model: PreTrainedModel, batch: int) -> Operator:
    """Return a decode step of the model without its attention: every weight is read."""
    count = model.config.num_hidden_layers
    cache = Cache(layers=[Skipped() for _ in range(count)])
    ids = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
    embeddings = model.get_input_embeddings().weight  # one row a token is read, unless tied
    tied = model.get_output_embeddings().weight is embeddings
    weights = [p for p in model.parameters() if tied or p is not embeddings]
    return Operator(
        "model without attention",
        lambda: model(ids, past_key_values=cache, position_ids=ids[:1]),
        sum(p.nbytes for p in weights),
        2 * batch * sum(p.numel() for p in weights),
    )


def full_attention(model: PreTrainedModel, batch: int, context: int) -> Operator:
    """Return attention of all layers over a full cache of ``context`` tokens, one pair written."""
    shape, (q, k, v) = model_shape(model.config), random_token(model, batch)
    cache = FullCache(model.config, context, model.device)
    for layer in cache.layers:
        layer.lazy_initialization(k, v)
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys.normal_()
        layer.values.normal_()
    cache.plan(context)

    def run() -> None:  # the newest token is written over and over
        cache.layers[0].seen = context - 1
        cache.position.fill_(context - 2)
        step()

    step = attention_step(cache, q, k, v)
    pairs = 2 * shape.num_layers * k.numel() * context
    return Operator(
        "attention, full cache",
        run,
        pairs * model.dtype.itemsize,
        4 * shape.num_layers * q.numel() * context,
    )


def bounded_attention(
    name: str,
    model: PreTrainedModel,
    policy: Policy,
    kernels: Kernels | None,
    batch: int,
    context: int,
) -> Operator:
    """Return attention of all layers over a bounded cache, with scores, eviction and state."""
    q, k, v = random_token(model, batch)
    cache = filled(LessCache(model.config, policy, kernels), batch, context, k)
    held, shape = cache.memory(), model_shape(model.config)
    places, layers = policy.budget + 1, shape.num_layers
    # Slots are read; scores and the state are read and written; psi is kept, one row written.
    moved = held["slots"] + 2 * (held["scores"] + held["state"])
    operations = 4 * layers * q.numel() * places
    if kernels is not None:
        moved += kernel_bytes(kernels)
        operations += map_operations(kernels, batch)
        operations += 4 * layers * q.numel() * kernels[0].kernel_size
    return Operator(name, attention_step(cache, q, k, v), moved, operations)


def feature_maps(name: str, model: PreTrainedModel, kernels: Kernels, batch: int) -> Operator:
    """Return phi of every query and psi of every key of a step, all layers, by what a step runs."""
    q, k, _ = random_token(model, batch)
    maps = [token_maps(kernel, q, k) for kernel in kernels]

    def run() -> None:
        for each in maps:
            each()

    return Operator(name, run, kernel_bytes(kernels), map_operations(kernels, batch))


def kernel_bytes(kernels: Kernels) -> int:
    """Return bytes of the weights of learned maps."""
    learned = [kernel for kernel in kernels if isinstance(kernel, PackedKernel)]
    return sum(w.nbytes for kernel in learned for w in (kernel.w1, kernel.w2, kernel.last))


def map_operations(kernels: Kernels, batch: int) -> int:
    """Return operations of learned maps, one token a sequence."""
    return sum(
        2 * batch * (kernel.w1.numel() + kernel.w2.numel())
        for kernel in kernels
        if isinstance(kernel, PackedKernel)
    )
