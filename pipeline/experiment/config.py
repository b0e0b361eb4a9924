"""Read a configuration: checked by its sections, completed by defaults, checked across sections."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match, relevance
from jsonschema.validators import extend

from ..errors import ConfigError
from .checks import problems_across
from .messages import explain, printable, short
from .schema import schema

MAX_DEPTH = 20
LARGEST = 1e15
"""Numbers beyond are mistakes; below, sizes and times stay exact and finite."""
MOST_PROBLEMS = 8
"""Problems told at once."""
GROWING = ("policies", "sparsities", "settings", "memory_mb", "layers_per_job", "paper", "shape")
"""Keys that measurements do not depend on: a grid may grow under them."""
# By the standard 8.0 is an integer; to `range` it is not.
Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, x: type(x) is int),
)


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from None
    return complete(content)


def complete(config: object) -> dict[str, Any]:
    """Return a copy of ``config`` with defaults filled in, after all checks.

    Raises:
        ConfigError: every problem on a line of its own, at most :data:`MOST_PROBLEMS` of them:
            which key, what is wrong and what would be right.
    """
    problems = []
    try:
        completed: dict[str, Any] = _plain(config)
        problems = [explain(error) for error in _schema_errors(completed)]
        if not problems:
            _fill(completed, schema())
            problems = [str(problem) for problem in problems_across(completed)]
    except ConfigError as error:
        problems.append(str(error))
    if not problems:
        return completed
    told = [printable(problem) for problem in dict.fromkeys(problems)]
    more = len(told) - MOST_PROBLEMS
    told[MOST_PROBLEMS:] = [f"and {more} more."] if more > 0 else []
    raise ConfigError("\n".join(told))


def _schema_errors(config: Mapping[str, Any]) -> list[ValidationError]:
    """Return what the schema refuses, one error a place, the likeliest mistakes first."""
    errors = Validator(schema()).iter_errors(config)
    by_place: dict[tuple[Any, ...], list[ValidationError]] = {}
    for error in errors:
        by_place.setdefault(tuple(error.absolute_path), []).append(error)
    best = (best_match(iter(same)) for same in by_place.values())
    return sorted(filter(None, best), key=relevance)


def config_hash(config: Mapping[str, Any]) -> str:
    """Return twelve hex digits that change when anything but folders, wording and load changes."""
    ignored = ("description", "scratch", "data_dir", "jobs_per_gpu")
    return _digits({key: value for key, value in config.items() if key not in ignored})


def _digits(content: Any) -> str:
    """Return twelve hex digits of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def settings_hash(
    config: Mapping[str, Any], model: str, what: str, more: Mapping[str, Any], *code: str
) -> str:
    """Return twelve hex digits that measurements of one run share: of code and of settings.

    A grid may grow under them, so which policies, sparsities and models there are does not count.

    Args:
        what: a task's name, ``fidelity`` or ``latency``.
        more: settings of training and grid that they depend on; nothing for the full cache.
        code: hashes of the steps that measure and train.
    """
    task = config["tasks"][what] if what in config["tasks"] else config[what]
    named = [item for part in (task, more) for item in part.items()]
    texts = {name: config["datasets"].get(name) for key, name in named if key.endswith("dataset")}
    parts = [
        {key: part[key] for key in part if key not in GROWING}
        for part in (task, more, config["models"][model])
    ]
    return _digits([config["device"], code, parts, texts])


def _plain(value: Any, place: str = "the configuration", depth: int = 0) -> Any:
    """Return a copy of plain data: what JSON can say.

    Raises:
        ConfigError: keys that are not text, dates, nan, cycles, or nesting without end.
    """
    if depth == 0 and not isinstance(value, Mapping):
        raise ConfigError("the configuration must be a mapping of keys to values.")
    if depth > MAX_DEPTH:
        raise ConfigError(f"{place.split('.')[0]}: nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{place}: the key {key!r} must be text; write it in quotes.")
        below = "" if depth == 0 else f"{place}."
        return {key: _plain(item, f"{below}{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}.{i}", depth + 1) for i, item in enumerate(value)]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float) and abs(value) <= LARGEST:
        return value
    if isinstance(value, int) or value in (math.inf, -math.inf):
        raise ConfigError(f"{place}: a number beyond {LARGEST:g}.")
    raise ConfigError(f"{place}: {short(value)} is not a number, text, list or mapping.")


def _fill(value: Any, schema: Mapping[str, Any]) -> None:
    """Fill missing keys with the schema's defaults, recursively; known keys in its order.

    The order of a file's keys then means nothing, also not in what commands are given.
    """
    if not isinstance(value, dict):
        return
    properties = schema.get("properties", {})
    for key, sub in properties.items():
        if "default" in sub:
            value.setdefault(key, copy.deepcopy(sub["default"]))
        if key in value:
            value[key] = value.pop(key)
    rest = schema.get("additionalProperties")
    for key, item in value.items():
        sub = properties.get(key, rest)
        if isinstance(sub, Mapping):
            _fill(item, sub)
    for branch in schema.get("allOf", ()):
        if Validator(branch["if"]).is_valid(value):
            _fill(value, branch["then"])
