"""Training the kernels of one layer, independent of all other layers (paper, section 3.2).

The loss is the mean squared error between the layer's output projection of the synthesised
attention and of full attention, over the rows that miss something. What does not depend on the
trained weights, the sparse part and the targets, is computed once (:func:`prepare`); a step is two
small MLPs, a chunked linear attention and the output projection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from ..kernels import TrainableKernel
from ..ops.low_rank import merge
from ..storage.tensors import load_tensors, save_tensors
from ..synthesis import low_rank_part
from .prepare import Prepared


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are the paper's.

    Attributes:
        epochs: passes over the training sequences; batch_size: sequences a step.
        learning_rate: Adam's at first; halved every ``halve_every`` epochs.
        beta2: Adam's decay of squared gradients.
        query_stride: a step takes every so many-th query of its sequences, from a random one on.
        validation: the share of sequences held out, to choose the best epoch by.
        seed: of the split, the order of sequences, and dropout.
    """

    epochs: int = 40
    batch_size: int = 2
    learning_rate: float = 1e-3
    halve_every: int = 10
    beta2: float = 0.999
    query_stride: int = 1
    validation: float = 0.1
    seed: int = 0


def loss_of(
    prepared: Prepared,
    index: torch.Tensor,
    kernel: TrainableKernel | None,
    start: int = 0,
    stride: int = 1,
) -> torch.Tensor:
    """Return mean squared error after the output projection, over sequences ``index`` (B,).

    Over all rows, or those from ``start`` on that are ``stride`` apart. Without a kernel, the
    sparse policy's own.
    """

    def batch(x: torch.Tensor, rows: slice) -> torch.Tensor:
        return x[:, :, rows][index].to(prepared.o_weight.device)

    rows = slice(start, None, stride)
    sparse, target = batch(prepared.sparse_out, rows), batch(prepared.target, rows)
    out = sparse.float()
    if kernel is not None:
        last = range(prepared.q.shape[2])[rows][-1]
        pairs = slice(prepared.initial + last + 1)
        numerator, denominator = low_rank_part(
            kernel.phi(batch(prepared.q, rows)),
            kernel.psi(batch(prepared.k, pairs)),
            batch(prepared.v, pairs),
            prepared.initial + start,
            stride,
        )
        out = merge(out, batch(prepared.lse, rows), numerator, denominator)
    difference = (out - target.float()).transpose(1, 2).flatten(2)
    dtype = kernel.compute_dtype if kernel is not None else torch.float32
    return F.linear(difference.to(dtype), prepared.o_weight.to(dtype)).float().square().mean()


@dataclass
class Epoch:
    """One line of a loss curve."""

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether both losses are numbers."""
        return math.isfinite(self.train_loss) and math.isfinite(self.validation_loss)


def _batches(
    indices: list[int], size: int, stride: int, seed: int
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield shuffled batches of sequence indices, and the row that each starts from."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.tensor(indices)[torch.randperm(len(indices), generator=generator)]
    for place in range(0, len(indices), size):
        start = int(torch.randint(stride, (), generator=generator))
        yield shuffled[place : place + size], start


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return (training, validation) sequence indices.

    A seeded permutation, at least one for each.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = min(max(round(count * share), 1), count - 1)
    return sorted(order[held_out:]), sorted(order[:held_out])


@torch.no_grad()
def evaluate(prepared: Prepared, indices: list[int], kernel: TrainableKernel | None) -> float:
    """Return mean loss over sequences, one at a time."""
    losses = [loss_of(prepared, torch.tensor([i]), kernel) for i in indices]
    return float(torch.stack(losses).mean())


def train_layer(
    prepared: Prepared,
    kernel: TrainableKernel,
    recipe: Recipe,
    resume: Path | None = None,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train ``kernel`` in place with Adam; leave it at its best validation epoch, in eval mode.

    Deterministic given ``recipe.seed``: the order of batches and the dropout masks are functions
    of (seed, epoch, step), so a training resumed at an epoch draws what an unbroken one would.

    Args:
        resume: a file that holds the state after each epoch; training continues from it if it is
            there and was written for the same recipe.
        report: called after each epoch.

    Returns:
        The loss curve; epoch 0 is before the first step. It ends early where a loss is no longer a
        finite number, since what follows would be none either.
    """
    training, validation = split(len(prepared), recipe.validation, recipe.seed)
    parameters = dict(kernel.named_parameters())
    optimizer = torch.optim.Adam(
        parameters.values(), lr=recipe.learning_rate, betas=(0.9, recipe.beta2)
    )
    # A strided batch needs a row for every start.
    stride = min(recipe.query_stride, prepared.q.shape[2])
    curve: list[Epoch] = []
    best = {name: value.detach().clone() for name, value in parameters.items()}
    if resume is not None and resume.exists():
        curve, best = _resume(resume, recipe, parameters, optimizer)
    if not curve:
        kernel.eval()
        # As many of the training split as are held out: all of them would cost half an epoch.
        seen = evaluate(prepared, training[: len(validation)], kernel)
        curve.append(Epoch(0, seen, evaluate(prepared, validation, kernel), 0.0, 0.0))
        report(curve[-1])
    for number in range(len(curve), recipe.epochs + 1):
        if not curve[-1].finite:
            break
        started = time.monotonic()
        rate = recipe.learning_rate * 0.5 ** ((number - 1) // recipe.halve_every)
        optimizer.param_groups[0]["lr"] = rate
        kernel.train()
        losses = []
        epoch_seed = recipe.seed * 1_000_003 + number
        kernel.reseed(epoch_seed * 1_000_003)
        for batch, start in _batches(training, recipe.batch_size, stride, epoch_seed):
            optimizer.zero_grad()
            loss = loss_of(prepared, batch, kernel, start, stride)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()) * len(batch))
        kernel.eval()
        held_out = evaluate(prepared, validation, kernel)
        if held_out < min(epoch.validation_loss for epoch in curve):
            best = {name: value.detach().clone() for name, value in parameters.items()}
        seconds = time.monotonic() - started
        curve.append(Epoch(number, sum(losses) / len(training), held_out, rate, seconds))
        if resume is not None:
            _save_state(resume, recipe, parameters, optimizer, curve, best)
        report(curve[-1])
    kernel.load_state_dict(best, strict=False)
    kernel.eval()
    return curve


def _save_state(
    path: Path,
    recipe: Recipe,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Adam,
    curve: list[Epoch],
    best: dict[str, torch.Tensor],
) -> None:
    """Write everything an unbroken training would hold in memory after this epoch."""
    tensors = {f"best.{name}": value for name, value in best.items()}
    for name, parameter in parameters.items():
        tensors[f"now.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam.{key}.{name}"] = value
    save_tensors(
        path, tensors, "training state", recipe=asdict(recipe), curve=[asdict(e) for e in curve]
    )


def _resume(
    path: Path,
    recipe: Recipe,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Adam,
) -> tuple[list[Epoch], dict[str, torch.Tensor]]:
    """Restore parameters and optimizer; ([], initial) when the file is for another recipe."""
    tensors, header = load_tensors(path, "training state")
    if header["recipe"] != asdict(recipe):
        return [], {name: value.detach().clone() for name, value in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"now.{name}"])
            optimizer.state[parameter] = {
                "step": tensors[f"adam.step.{name}"],  # the optimizer counts on the host
                **{
                    key: tensors[f"adam.{key}.{name}"].to(parameter.device)
                    for key in ("exp_avg", "exp_avg_sq")
                },
            }
    best = {name: tensors[f"best.{name}"].to(at.device) for name, at in parameters.items()}
    return [Epoch(**line) for line in header["curve"]], best
