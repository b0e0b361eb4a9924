"""Kernels on disk: safetensors whose header says what model, policy and recipe they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError, DataError
from ..kernels import TrainableKernel, get_kernel
from ..storage.tensors import load_tensors, open_tensors, save_tensors
from ..transformer.shape import Heads, model_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KIND = "kernels"


def save_kernels(
    path: Path,
    kernels: Mapping[int, TrainableKernel],
    name: str,
    heads: Heads,
    build: Mapping[str, Any],
    **header: Any,
) -> None:
    """Write kernels by layer, all of one ``name`` in :data:`pipeline.kernels.KERNELS`.

    Args:
        build: the sizes that :func:`get_kernel` makes them anew from.
        header: further entries, plain data.

    Raises:
        DataError: a kernel holds numbers that are not finite.
    """
    for layer, kernel in kernels.items():
        _require_finite(kernel, f"the kernel of layer {layer}, which was to become {path},")
    tensors = {
        f"layers.{layer}.{name}": value.detach()
        for layer, kernel in kernels.items()
        for name, value in kernel.state_dict().items()
    }
    save_tensors(
        path,
        tensors,
        KIND,
        kernel=name,
        heads=vars(heads),
        build=dict(build),
        layers=sorted(kernels),
        **header,
    )


def load_kernels(
    path: str | Path,
    heads: Heads | None = None,
    num_layers: int | None = None,
    compute_dtype: torch.dtype = torch.float32,
) -> list[TrainableKernel]:
    """Return the kernels of all layers, in order, in evaluation mode.

    Args:
        heads, num_layers: of the model they are meant for; checked when given.
        compute_dtype: of their matrix products.

    Raises:
        DataError: not a kernel file, damaged, layers missing, or made for another model.
    """
    tensors, header = load_tensors(path, KIND)
    if not {"layers", "kernel", "heads", "build"} <= header.keys():
        raise DataError(f"{path} does not say in its header what its kernels are built for.")
    count = num_layers if num_layers is not None else len(header["layers"])
    if header["layers"] != list(range(count)):
        raise DataError(
            f"{path} holds kernels of layers {_ranges(header['layers'])}, not of all {count}."
        )
    if heads is not None and header["heads"] != vars(heads):
        raise DataError(
            f"{path} was trained for {_layout(header['heads'])}, but the model has "
            f"{_layout(vars(heads))}; train kernels for this model."
        )
    kernels = []
    for layer in range(count):
        prefix = f"layers.{layer}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            made_for = Heads(**header["heads"])
            kernel = trainable(
                header["kernel"], made_for, header["build"], compute_dtype=compute_dtype
            )
            kernel.load_state_dict(state)
        except (RuntimeError, TypeError, ConfigError) as error:
            raise DataError(f"{path}: layer {layer} does not fit its header ({error}).") from None
        _require_finite(kernel, f"{path}: layer {layer}")
        kernels.append(kernel.eval())
    return kernels


def kernel_in(path: str | Path) -> str:
    """Return the name of the kernels in a file.

    Raises:
        DataError: not a kernel file, or damaged.
    """
    with open_tensors(path, KIND) as (_, header):
        if "kernel" not in header:
            raise DataError(f"{path} does not say in its header what its kernels are built for.")
        name: str = header["kernel"]
        return name


def trainable(name: str, heads: Heads, sizes: Mapping[str, Any], **options: Any) -> TrainableKernel:
    """Return a new kernel ``name`` for ``heads``; further arguments are those of get_kernel.

    Raises:
        ConfigError: unknown name, or a kernel that nothing trains.
    """
    kernel = get_kernel(name, **vars(heads), **sizes, **options)
    if not isinstance(kernel, TrainableKernel):
        raise ConfigError(f"the kernel '{name}' has nothing to train.")
    return kernel


def _require_finite(kernel: TrainableKernel, what: str) -> None:
    """Refuse a kernel that would turn every output into NaN."""
    if not all(bool(value.isfinite().all()) for value in kernel.state_dict().values()):
        raise DataError(f"{what} holds numbers that are not finite; train it again.")


def join_kernels(parts: Sequence[Path], out: Path) -> None:
    """Join files that hold some layers each into one; their headers must agree.

    Raises:
        DataError: a part is damaged or belongs to another training.
    """
    tensors: dict[str, torch.Tensor] = {}
    layers: list[int] = []
    losses: dict[str, Any] = {}
    common: dict[str, Any] | None = None
    for path in parts:
        part, header = load_tensors(path, KIND)
        layers += header.pop("layers")
        losses |= header.pop("losses", {})
        if common is not None and header != common:
            raise DataError(f"{path} belongs to another training than {parts[0]}.")
        common = header
        tensors |= part
    if common is None:
        raise DataError("there is nothing to join.")
    common.pop("kind")
    save_tensors(out, tensors, KIND, layers=sorted(layers), losses=losses, **common)


def _layout(heads: Mapping[str, int]) -> str:
    return f"{heads['num_heads']} query heads on {heads['num_kv_heads']} of {heads['head_dim']}"


def _ranges(layers: Sequence[int]) -> str:
    return f"{layers[0]}..{layers[-1]} ({len(layers)})" if layers else "none"


def kernels_for(model: PreTrainedModel, path: str | Path) -> list[TrainableKernel]:
    """Return the kernels of all layers of ``model``, on its device, products in its dtype.

    Raises:
        DataError: as :func:`load_kernels`, which checks them against the model.
    """
    shape = model_shape(model.config)
    kernels = load_kernels(path, shape.heads, shape.num_layers, model.dtype)
    return [kernel.to(model.device) for kernel in kernels]
