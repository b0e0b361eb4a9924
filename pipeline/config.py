"""The configuration: one schema, defaults filled in, and the checks a schema cannot express."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from pipeline.errors import ConfigError, unknown
from pipeline.methods import METHODS
from pipeline.policies import FAMILIES, budget_tokens

SCHEMA = Path(__file__).parent.parent / "workflow" / "schemas" / "config.schema.yaml"


def load_config(path: str | Path) -> dict[str, Any]:
    """Read, complete and check a configuration file.

    Raises:
        ConfigError: missing file, not YAML, or anything :func:`complete` refuses.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}.") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from None
    return complete(content)


def complete(config: object) -> dict[str, Any]:
    """A copy of ``config`` with defaults filled in, after all checks.

    Raises:
        ConfigError: one message naming the key, what is wrong and what would be right.
    """
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    if not isinstance(config, Mapping):
        raise ConfigError("the configuration must be a mapping of keys to values.")
    filled: dict[str, Any] = copy.deepcopy(dict(config))
    error = best_match(Draft202012Validator(schema).iter_errors(filled))
    if error is not None:
        raise ConfigError(_explain(error))
    _fill(filled, schema, schema)
    for problem in _cross_checks(filled):
        raise problem
    return filled


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that change when anything but folders and wording changes."""
    ignored = ("description", "scratch", "data_dir")
    content = {key: value for key, value in config.items() if key not in ignored}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _explain(error: ValidationError) -> str:
    """A schema error in plain words, with its place and the nearest known key."""
    place = ".".join(str(part) for part in error.absolute_path) or "the configuration"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        for key in error.instance:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}."
                return f"{place}: unknown key '{key}'{hint}"
    if error.validator == "required":
        return f"{place}: {error.message.replace('is a required property', 'is missing')}."
    if error.validator == "oneOf" and place.endswith("weights"):
        return f"{place}: give exactly one of package, hub, folder or random."
    described = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    return f"{place}: {error.message}." + (f" ({described})" if described else "")


def _fill(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    """Fill missing keys with the schema's defaults, recursively."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if not isinstance(value, dict):
        return
    properties = schema.get("properties", {})
    for key, sub in properties.items():
        if "default" in sub:
            value.setdefault(key, copy.deepcopy(sub["default"]))
    rest = schema.get("additionalProperties")
    for key, item in value.items():
        sub = properties.get(key, rest)
        if isinstance(sub, Mapping):
            _fill(item, sub, root)


def _cross_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What is wrong across keys, most telling first."""
    grid, datasets = config["grid"], config["datasets"]
    for kind, names, known in (
        ("policy", grid["policies"], FAMILIES),
        ("method", grid["methods"], METHODS),
    ):
        for name in names:
            if name not in known:
                yield unknown(kind, name, known)
    users = {f"tasks.{name}": task["dataset"] for name, task in config["tasks"].items()}
    users["train"] = config["train"]["dataset"]
    if config["fidelity"]:
        users["fidelity"] = config["fidelity"]["dataset"]
    for user, name in users.items():
        if name not in datasets:
            error = unknown("data set", name, datasets)
            yield ConfigError(f"{user}.dataset: {error}")
    yield from _sparsity_checks(config)
    trained = datasets[config["train"]["dataset"]]
    for user, name in users.items():
        if user != "train" and _overlap(trained, datasets[name]):
            yield ConfigError(
                f"{user} measures on '{name}', which shares documents with the training data set "
                f"'{config['train']['dataset']}'; use another split, or `documents` ranges apart."
            )


def _sparsity_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    grid = config["grid"]
    for key in ("train_sparsities", "test_sparsities"):
        for sparsity in grid[key]:
            if not 0 < sparsity < 1:
                yield ConfigError(f"grid.{key}: {sparsity} is not in (0, 1).")
    extra = config["train"]["kernel"]["kernel_size"] // 2
    for name, model in config["models"].items():
        for sparsity in {*grid["train_sparsities"], *grid["test_sparsities"]}:
            budget = budget_tokens(sparsity, model["context"])
            if budget + extra >= model["context"]:
                yield ConfigError(
                    f"models.{name}: sparsity {sparsity} means {budget} tokens (+{extra} for "
                    f"baseline_plus), which is not below the context of {model['context']}."
                )


def _overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two data sets can share documents: same source and split, ranges not apart."""
    ranges = ("documents", "field", "limit", "stream", "local")
    if {k: v for k, v in a.items() if k not in ranges} != {
        k: v for k, v in b.items() if k not in ranges
    }:
        return False
    (a_start, a_stop), (b_start, b_stop) = (x.get("documents", [0, float("inf")]) for x in (a, b))
    return bool(a_start < b_stop and b_start < a_stop)
