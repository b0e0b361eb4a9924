"""Models and tokenizers: from the hub, a folder, a package's GGUF file, or random weights.

Weights are named in config by a mapping with exactly one of

- ``package``: a package of ``resources/packages.yaml`` that holds a GGUF file;
- ``hub``: a model id, with ``revision`` and ``trust_remote_code`` if wanted;
- ``folder``: a `transformers` folder, with ``trust_remote_code`` if wanted;
- ``random``: an ``architecture`` and fields of its config, with ``seed`` beside it.

:func:`materialise` turns any of them into an ordinary folder, which loads in a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from ..download.hub import discard_damaged, first_line, lasting
from ..download.packages import checked
from ..download.retry import persistently
from ..errors import ConfigError, DataError, unknown
from ..storage.files import CHECKSUMS, check_folder, save_checksums, whole_folder
from .shape import model_shape

logging.disable_progress_bar()  # bars fill the logs of jobs that nobody watches

Weights = Mapping[str, Any] | str | os.PathLike[str]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARCHITECTURES = ("falcon", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""What random weights can be made of: the model types that :func:`attach` is tested with."""
END_OF_TEXT = "<|endoftext|>"
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
HUB_DUPLICATES = ["*/*", "consolidated*"]
"""Other formats of the same weights that some repositories also hold."""


def load_model(
    source: Weights, dtype: str | torch.dtype = "float32", device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Return a frozen causal language model in evaluation mode.

    Args:
        source: weights as in config, or just a folder or hub id.
        dtype: float32, bfloat16 or float16.
        device: where to put it.

    Raises:
        ConfigError: a mapping, architecture or dtype that does not exist.
        DataError: weights that are missing, unreachable or not safetensors.
        DamagedError: a folder that :func:`materialise` made has changed.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        dtype = DTYPES[dtype]
    source = _mapping(source)
    model: Any  # the library's decorators hide what its methods take
    if _kind(source) == "random":
        model = _random_model(source, dtype, device)
    else:
        model = _from_folder(AutoModelForCausalLM, source, dtype=dtype, use_safetensors=True)
    return model.to(device).eval().requires_grad_(False)  # type: ignore[no-any-return]


def load_tokenizer(source: Weights) -> PreTrainedTokenizerBase:
    """Return the tokenizer that goes with ``source``; raises as :func:`load_model`."""
    source = _mapping(source)
    return byte_tokenizer() if _kind(source) == "random" else _from_folder(AutoTokenizer, source)


def materialise(weights: Weights, out: Path, package: Path | None = None) -> None:
    """Make ``out`` a `transformers` folder of ``weights``: config, safetensors and tokenizer.

    Files that are on disk already (hub cache, local folder) are linked, not copied. The folder
    appears when it is whole.

    Args:
        package: the file of weights that are a package's.

    Raises:
        ConfigError: as :func:`load_model`.
        DataError: as :func:`load_model`, a package that was not fetched, a full disk, or
            an ``out`` that has files in it.
    """
    weights = _mapping(weights)
    if out.exists() and any(out.iterdir()):  # it may be somebody's only copy
        raise DataError(f"{out} exists already; delete it to make it again.")
    with whole_folder(out) as partial:
        MAKERS[_kind(weights)](weights, package, partial)
        save_checksums(partial)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that needs no files: one token a byte, and one for the end of a text."""
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _mapping(source: Weights) -> Mapping[str, Any]:
    """Return ``source`` as config would write it."""
    if isinstance(source, str) and not Path(source).is_dir():
        return {"hub": source}
    if isinstance(source, str | os.PathLike):
        return {"folder": os.fspath(source)}
    return source


def _kind(source: Mapping[str, Any]) -> str:
    """Return which of the kinds of weights ``source`` is."""
    kinds = [key for key in MAKERS if key in source]
    if len(kinds) != 1:
        raise ConfigError(
            f"weights need exactly one of {', '.join(MAKERS)}; given: {', '.join(source)}."
        )
    return kinds[0]


def _folder(source: Mapping[str, Any]) -> Path:
    """Return the folder that ``source`` names, downloaded to the hub's cache if it must be.

    Raises:
        ConfigError: a package, whose file is converted first.
        DataError: no such folder, or the hub cannot give it.
    """
    kind = _kind(source)
    if kind == "folder":
        path = Path(source["folder"])
        if not (path / "config.json").is_file():
            raise DataError(f"{path} is not a model's folder: it has no config.json.")
        return path
    if kind == "hub":
        return _snapshot(source)
    raise ConfigError(
        f"weights of a package are converted once (`less-kv convert`); load the folder that "
        f"made, not {source['package']} itself."
    )


def _snapshot(source: Mapping[str, Any]) -> Path:
    """Return the hub cache's folder of a model, downloaded if it is not there."""
    code = ["*.py"] if source.get("trust_remote_code", False) else []

    def attempt(number: int) -> Path:
        folder = snapshot_download(
            source["hub"],
            revision=source.get("revision"),
            allow_patterns=[*HUB_FILES, *code],
            ignore_patterns=HUB_DUPLICATES,
        )
        discard_damaged(Path(folder))
        return Path(folder)

    try:
        return persistently(attempt, lasting)
    except Exception as error:  # those of its network library have no base that it names
        raise DataError(
            f"cannot get the model '{source['hub']}' (revision {source.get('revision', 'main')}) "
            f"from the hub: {first_line(error)}. It is neither a folder here "
            f"nor in the hub's cache; with a copy on disk, write `folder: PATH` in its place. "
            f"Gated models need `hf auth login`."
        ) from error


def _from_folder(auto: Any, source: Mapping[str, Any], **options: Any) -> Any:
    """Load a model or tokenizer of the library from what ``source`` names."""
    folder = _folder(source)
    check_folder(folder, [".safetensors"] if auto is AutoTokenizer else [])
    try:
        return auto.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=source.get("trust_remote_code", False),
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"cannot load {folder}: {error}") from error


def _random_model(
    source: Mapping[str, Any], dtype: torch.dtype, device: str | torch.device
) -> PreTrainedModel:
    """Return a model of the given shape, with the library's initialisation from a seed."""
    devices = [] if torch.device(device).type == "cpu" else [device]
    try:
        config = _random_config(source["random"])
        with torch.random.fork_rng(devices), torch.device(device):
            torch.manual_seed(source.get("seed", 0))
            return AutoModelForCausalLM.from_config(  # type: ignore[no-any-return]
                config, dtype=dtype
            )
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"a random model cannot be made: {error}") from error


def _random_config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the library's config of an architecture, with the vocabulary of the byte tokenizer."""
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    fields = {
        "vocab_size": len(tokenizer),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end),
        **fields,
    }
    architecture = fields.pop("architecture", "none")
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    usual = AutoConfig.for_model(architecture)
    for field in fields:
        if not hasattr(usual, field):  # the library would take any name and ignore it
            raise unknown(f"field of {architecture}", field, usual.to_dict())
    if fields["vocab_size"] < len(tokenizer):
        raise ConfigError(f"vocab_size must be {len(tokenizer)} or more, one a byte and the end.")
    config: PreTrainedConfig = AutoConfig.for_model(architecture, **fields)
    shape = model_shape(config)
    if shape.num_heads % shape.num_kv_heads:
        raise ConfigError(
            f"{shape.num_heads} attention heads cannot share {shape.num_kv_heads} key/value heads; "
            f"the fields of {architecture} must name both."
        )
    return config


def _make_random(weights: Mapping[str, Any], package: Path | None, out: Path) -> None:
    load_model(weights).save_pretrained(out)
    load_tokenizer(weights).save_pretrained(out)


def _make_link(weights: Mapping[str, Any], package: Path | None, out: Path) -> None:
    for path in _folder(weights).iterdir():
        if path.is_file() and path.name != CHECKSUMS:
            (out / path.name).symlink_to(path.resolve())


def _make_converted(weights: Mapping[str, Any], package: Path | None, out: Path) -> None:
    """Dequantise a package's GGUF file to float32."""
    path = checked(weights["package"], package)
    model: Any
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is not a GGUF file that can be converted: {error}") from error
    # the library still takes the weights for quantised ones and would refuse to save them
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


MAKERS: dict[str, Callable[[Mapping[str, Any], Path | None, Path], None]] = {
    "package": _make_converted,
    "hub": _make_link,
    "folder": _make_link,
    "random": _make_random,
}
"""Kinds of weights, and what fills a folder with them."""
