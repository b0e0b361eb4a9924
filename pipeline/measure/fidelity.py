"""How well approximated attention matches the true one (paper, sections 1 and 4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..eviction import evicted_at
from ..kernels import Kernel
from ..ops.times import evictions_seen
from ..policies import Policy
from ..runtime.progress import Progress
from ..storage.tensors import load_tensors
from ..transformer.interface import record
from .variants import Compared

ROWS = 256  # queries at once; keeps memory at O(ROWS * S)
STRIDE = 4  # neighbouring rows are alike; all of them would take four times as long


def attention_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    evicted_at: torch.Tensor,
    queries: torch.Tensor,
    kernel: Kernel | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield true attention rows and their approximation under eviction times, some rows at a time.

    The approximation spreads over the visible keys by exp(q k / sqrt(d)) and, given a ``kernel``,
    over the evicted ones by phi(q) psi(k).

    Args:
        q: (B, H, S, D). k: (B, G, S, D). evicted_at: (B, G, S).
        queries: positions of the rows, (T,).

    Yields:
        Two float32 (B, G, H / G, rows, S), each row summing to one.
    """
    q = q[:, :, queries]
    batch, heads, count, size = q.shape
    groups = k.shape[1]
    rows = q.float().view(batch, groups, heads // groups, count, size)
    position = torch.arange(k.shape[2], device=q.device)
    features = None
    if kernel is not None:
        phi = kernel.phi(q).view(batch, groups, heads // groups, count, -1)
        features = phi, kernel.psi(k)[:, :, None].transpose(-1, -2)
    for start in range(0, count, ROWS):
        chunk = slice(start, start + ROWS)
        causal = position <= queries[chunk, None]
        visible = causal & (queries[chunk, None] < evicted_at[:, :, None, None, :])
        logits = rows[..., chunk, :] @ k.float()[:, :, None].transpose(-1, -2) * size**-0.5
        logits = logits.masked_fill(~causal, float("-inf"))
        # In logarithms, where no logit is too small or too large beside phi(q) psi(k).
        evicted = logits.new_full((), float("-inf"))
        if features is not None:
            evicted = (features[0][..., chunk, :] @ features[1]).log()
        weights = torch.where(visible, logits, evicted).masked_fill(~causal, float("-inf"))
        yield logits.softmax(-1), weights.softmax(-1)


def hellinger(
    q: torch.Tensor,
    k: torch.Tensor,
    evicted_at: torch.Tensor,
    queries: torch.Tensor,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Return the Hellinger distance of attention rows to their approximation under eviction times.

        distance = || sqrt(p) - sqrt(p') ||_2 / sqrt(2)

    Args:
        q, k, evicted_at, queries, kernel: as for :func:`attention_rows`.

    Returns:
        float32 (B, H, T), in [0, 1].
    """
    distances = [
        (true.sqrt() - approximate.sqrt()).square().sum(-1).div(2).sqrt()
        for true, approximate in attention_rows(q, k, evicted_at, queries, kernel)
    ]
    return torch.cat(distances, dim=-1).view(*q.shape[:2], len(queries))


def residual_spectrum(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return singular values of one head's attention output and of what top-k selection leaves out.

    The sparse output attends to each row's ``kept`` largest probabilities (paper, Figure 3).

    Args:
        q, k, v: (S, D) of one head.

    Returns:
        Singular values (D,) of the full output A and of the residual A - A_sparse, both divided by
        the largest of A, and the relative error (D + 1,) of A_sparse plus the best correction of
        rank 0, 1, ... D: || A - (A_sparse + residual_r) ||_F / || A ||_F.
    """
    length, size = q.shape
    logits = (q.float() @ k.float().T * size**-0.5).masked_fill(
        torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1), float("-inf")
    )
    full = logits.softmax(-1) @ v.float()
    lowest = logits.topk(min(kept, length), dim=-1).values[:, -1:]
    residual = full - logits.masked_fill(logits < lowest, float("-inf")).softmax(-1) @ v.float()
    values, left = torch.linalg.svdvals(full), torch.linalg.svdvals(residual)
    energy = torch.cat([left.square(), left.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    return values / values[0], left / values[0], energy.sqrt() / values.square().sum().sqrt()


@torch.inference_mode()
def measure_fidelity(model: PreTrainedModel, samples: Path, compared: Compared, out: Path) -> None:
    """Write one row a method, train sparsity, layer and window: the mean over heads and rows.

    Queries and keys are those of the full model, so that a layer is judged by itself; rows count
    that miss something, every :data:`STRIDE`-th of them.

    Raises:
        ConfigError: there is no policy to measure.
        DataError: samples or kernels are missing, damaged or of another model.
    """
    if compared.policy is None:
        raise ConfigError("give --policy, --budget and --methods.")
    windows, header = load_tensors(samples, "samples")
    variants = compared.variants(model)
    rows: list[dict[str, Any]] = []
    document = ""

    def receive(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        times: dict[Policy | None, torch.Tensor] = {}  # methods of one budget share them
        for variant in variants:
            policy = variant.policy
            assert policy is not None
            if policy not in times:
                times[policy] = evicted_at(q, k, policy, compared.scores)
            first = evictions_seen(times[policy])[0]
            queries = torch.arange(first, q.shape[2], STRIDE, device=q.device)
            kernel = None if variant.kernels is None else variant.kernels[layer]
            distance = float(hellinger(q, k, times[policy], queries, kernel).mean())
            where = {"document": document, "layer": layer, "hellinger": distance}
            rows.append(variant.columns | where)

    progress = Progress("fidelity", len(windows["tokens"]))
    with record(model, receive):
        for document, tokens in zip(  # noqa: B007  # read by receive
            header["documents"], windows["tokens"].long(), strict=True
        ):
            model(tokens[None].to(model.device), use_cache=False, logits_to_keep=1)
            progress.step()
    compared.save(out, rows, "fidelity")
