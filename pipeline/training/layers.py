"""Train the kernels of some layers, one after the other, each independent of all others."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..errors import DataError
from ..eviction import Scores
from ..kernels import TrainableKernel, layer_seed
from ..policies import Policy
from ..runtime.code import code_of
from ..runtime.machine import machine
from ..runtime.progress import rate
from ..storage.features import find_features, read_sequences
from ..storage.files import save_table
from ..storage.tensors import checksum_of, open_tensors
from ..transformer.shape import Heads
from .checkpoint import save_kernels, trainable
from .faults import ON_HARM, Fault
from .loop import Epoch, Recipe, evaluate, split, train_layer
from .prepare import Prepared, prepare


@dataclass(frozen=True)
class Job:
    """What a training is told, whatever the layer.

    Attributes:
        policy, scores: whose evictions the kernels make up for.
        kernel: name in :data:`pipeline.kernels.KERNELS`; ``sizes`` are of :func:`get_kernel`.
        on_harm: a name in :data:`pipeline.training.faults.ON_HARM`.
        compute_dtype: of matrix products, by its name in torch.
    """

    policy: Policy
    scores: Scores
    kernel: str
    sizes: Mapping[str, Any]
    recipe: Recipe
    on_harm: str
    compute_dtype: str
    device: str

    @property
    def header(self) -> dict[str, Any]:
        """What kernels on disk say of their training, as plain data."""
        return {
            "policy": asdict(self.policy),
            "scores": self.scores,
            "recipe": asdict(self.recipe),
        }

    def new_kernel(self, heads: Heads, layer: int) -> TrainableKernel:
        """Return the untrained kernel of a layer."""
        kernel = trainable(
            self.kernel,
            heads,
            self.sizes,
            seed=layer_seed(self.recipe.seed, layer),
            compute_dtype=getattr(torch, self.compute_dtype),
        )
        return kernel.to(self.device)


@dataclass(frozen=True)
class Layer:
    """The features of one layer, ready to train on.

    Attributes:
        matters: what a training of them depends on, as plain data.
    """

    number: int
    heads: Heads
    prepared: Prepared
    matters: list[Any]

    @classmethod
    def read(cls, job: Job, features: list[Path], number: int) -> Layer:
        """Read what `less-kv dump` wrote of a layer.

        Raises:
            DataError: it is missing or damaged.
        """
        path = find_features(features, number)
        with open_tensors(path, "features", path.parent) as (handle, header):
            shapes = {name: handle.get_slice(name).get_shape() for name in ("q", "k")}
            heads = Heads(shapes["q"][1], shapes["k"][1], shapes["q"][3])
            matters = [header, checksum_of(handle)]
            o_weight = handle.get_tensor("o_weight").to(job.device)
            sequences = read_sequences(handle, job.device)
            prepared = prepare(sequences, o_weight, job.policy, job.scores)
        return cls(number, heads, prepared, matters)


def train_layers(
    job: Job, features: list[Path], layers: range, resume: Path, out: Path, curves: Path
) -> None:
    """Write kernels of ``layers`` and one row an epoch and layer of their loss curves.

    Args:
        features: folders of dumps that hold the layers.
        resume: folder for unfinished layers; it is deleted once all are finished.

    Raises:
        ConfigError: a kernel that nothing trains.
        DataError: features are missing or damaged, or a training failed and ``on_harm`` is stop.
    """
    kernels: dict[int, TrainableKernel] = {}
    rows: list[dict[str, Any]] = []
    losses: dict[str, dict[str, Any]] = {}
    heads = None
    for number in layers:
        layer = Layer.read(job, features, number)  # one at a time: features are large
        if heads is None:
            where = [layers.start, layers.stop]
            print(f"train: layers {where} on {machine()}", file=sys.stderr, flush=True)
        heads = layer.heads
        kernel = job.new_kernel(heads, number)
        training, held_out = split(len(layer.prepared), job.recipe.validation, job.recipe.seed)
        sparse = evaluate(layer.prepared, held_out, None)
        matters = [job.header, *layer.matters, job.kernel, job.sizes, job.compute_dtype]
        curve = train_layer(
            layer.prepared,
            kernel,
            job.recipe,
            _state(resume, number, matters),
            _reporter(
                f"layer {number} (of {layers.start}..{layers.stop - 1})",
                job.recipe,
                len(training),
                sparse,
            ),
        )
        del layer  # before the next layer's features are read
        fault = Fault.of(curve, sparse)
        if fault is not None:
            print(f"layer {number} {fault.what}", file=sys.stderr)
            if fault.harmful:
                ON_HARM[job.on_harm](kernel, f"layer {number} {fault.what}")
        kernels[number] = kernel.cpu()
        about = {
            "layer": number,
            "sparse_loss": sparse,
            "fault": fault and fault.what,
            "became": job.on_harm if fault is not None and fault.harmful else None,
        }
        rows += [about | asdict(epoch) for epoch in curve]
        finite = [epoch.validation_loss for epoch in curve if epoch.finite]
        losses[str(number)] = {
            "sparse": sparse if math.isfinite(sparse) else None,
            "best": min(finite, default=None),
            "fault": fault and fault.what,
        }
    if heads is None:
        raise DataError("there are no layers to train.")
    save_table(curves, pd.DataFrame(rows).drop(columns="seconds"))
    save_kernels(out, kernels, job.kernel, heads, job.sizes, losses=losses, **job.header)
    shutil.rmtree(resume, ignore_errors=True)


def _state(resume: Path, layer: int, matters: list[Any]) -> Path:
    """Return where an unfinished training is kept; one that differs in what matters has another."""
    identity = json.dumps([*matters, code_of("train")], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return resume / f"layer{layer:03d}-{key}.safetensors"


def _reporter(name: str, recipe: Recipe, count: int, sparse: float) -> Callable[[Epoch], None]:
    """Return what prints a line an epoch; ``count`` sequences are trained on."""

    def report(epoch: Epoch) -> None:
        step = epoch.epoch * -(-count // recipe.batch_size)
        speed = f", {rate(count, epoch.seconds)} sequences" if step else ""
        print(
            f"{name} epoch {epoch.epoch}/{recipe.epochs}, step {step}: "
            f"loss {epoch.train_loss:.3e}, validation {epoch.validation_loss:.3e} "
            f"({epoch.validation_loss / sparse:.3f} of sparse){speed}",
            file=sys.stderr,
            flush=True,
        )

    return report
