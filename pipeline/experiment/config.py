"""The configuration: one schema, defaults filled in, and the checks a schema cannot express."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend

from ..download.packages import packages
from ..errors import ConfigError, unknown
from ..policies import FAMILIES, budget_tokens, state_tokens
from ..storage.disk import GIB
from ..text.prompts import templates
from . import grid
from .cost import bundle_bytes, bundles_at_once, bundles_of_a_training
from .latency import contenders, settings
from .methods import METHODS

NEEDED = {"aclsum": ["split"], "wikipedia_sample": [], "hub": ["path", "split"], "jsonl": ["path"]}
"""Keys of a data set without which its source cannot be read."""
WHICH_TEXT = ("source", "path", "name", "split")
"""Keys that say which documents a data set reads; the others say which part, and how."""
MAX_DEPTH = 20
LARGEST = 1e15
"""Numbers beyond are mistakes; below, sizes and times stay exact and finite."""
LONGEST = 500
"""Characters of a message."""
MOST_JOBS = 50_000
"""Planning takes seconds for every thousand."""
OURS = (".", ".git", ".snakemake", "results", "logs", "workflow", "pipeline")
"""Folders beside the Snakefile that intermediate files would mix with."""
# By the standard 8.0 is an integer; to `range` it is not.
Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, x: type(x) is int),
)
COUNTED = {"perplexity": "windows", "summaries": "samples"}
"""The key of a kind of task that says how many documents it needs."""
WITHOUT_SUMMARIES = ("wikipedia_sample",)
"""Sources whose documents have no summaries."""
SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "config.schema.yaml"


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
    """A copy of ``config`` with defaults filled in, after all checks.

    Raises:
        ConfigError: one message naming the key, what is wrong and what would be right.
    """
    try:
        return _complete(config)
    except ConfigError as error:
        raise ConfigError(_printable(str(error))) from None


def _complete(config: object) -> dict[str, Any]:
    schema = _schema()
    if not isinstance(config, Mapping):
        raise ConfigError("the configuration must be a mapping of keys to values.")
    filled: dict[str, Any] = _plain(config)
    error = best_match(Validator(schema).iter_errors(filled))
    if error is not None:
        raise ConfigError(_explain(error))
    _fill(filled, schema, schema)
    for problem in _cross_checks(filled):
        raise problem
    return filled


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that change when anything but folders, wording and load changes."""
    ignored = ("description", "scratch", "data_dir", "jobs_per_gpu")
    return _digits({key: value for key, value in config.items() if key not in ignored})


def _digits(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def settings_hash(
    config: Mapping[str, Any], model: str, what: str, more: Mapping[str, Any], *code: str
) -> str:
    """Twelve hex digits that measurements of one run share: of code, and of settings they obey.

    A grid may grow under them, so which policies, sparsities and models there are does not count.

    Args:
        what: a task's name, ``fidelity`` or ``latency``.
        more: settings of training and grid that they depend on; nothing for the full cache.
        code: hashes of the steps that measure and train.
    """
    task = config["tasks"][what] if what in config["tasks"] else config[what]
    names = {value for part in (task, more) for key, value in part.items()
             if key.endswith("dataset")}  # fmt: skip
    growing = (
        "policies", "sparsities", "settings", "memory_mb", "layers_per_job", "paper", "shape",
    )  # fmt: skip
    parts = [task, more, config["models"][model]]
    content = [
        config["device"], code,
        [{key: part[key] for key in part if key not in growing} for part in parts],
        {name: config["datasets"].get(name) for name in names},
    ]  # fmt: skip
    return _digits(content)


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    return schema


def _plain(value: Any, place: str = "the configuration", depth: int = 0) -> Any:
    """A copy of plain data: what JSON can say.

    Raises:
        ConfigError: keys that are not text, dates, nan, cycles, or nesting without end.
    """
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
    if isinstance(value, str):
        if "\0" in value:
            raise ConfigError(f"{place}: text must not hold a NUL character.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ConfigError(f"{place}: text must not hold half a character (a surrogate).")
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) <= LARGEST:
        return value
    if isinstance(value, int) or value in (math.inf, -math.inf):
        raise ConfigError(f"{place}: a number beyond {LARGEST:g}.")
    raise ConfigError(f"{place}: {_short(value)} is not a number, text, list or mapping.")


def _short(value: object) -> str:
    """A value on one line of bearable length."""
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}"


def _printable(message: str) -> str:
    """A message that shows as one line on any terminal, whatever names and values it quotes."""
    shown = (x if x.isprintable() else x.encode("unicode_escape").decode() for x in message)
    text = "".join(shown)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"


def _explain(error: ValidationError) -> str:
    """A schema error in plain words, with its place and the nearest known key."""
    if isinstance(error.parent, ValidationError) and error.parent.validator == "oneOf":
        error = error.parent
    place = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        for key in error.instance:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}."
                return f"{place}: unknown key {_short(repr(key))}{hint}"
    if error.validator == "required":
        return f"{place}: {error.message.replace('is a required property', 'is missing')}."
    if error.validator == "oneOf" and place.endswith("weights"):
        return f"{place}: give exactly one of package, hub, folder or random."
    described = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    message = _short(error.message)
    if error.validator == "type" and isinstance(error.instance, str) and _is_number(error.instance):
        message += ", but text; YAML reads 1e-3 as text and 1.0e-3 as a number"
    return f"{place}: {message}." + (f" ({described})" if described else "")


def _is_number(text: str) -> bool:
    """Whether Python reads as a number what YAML left as text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fill(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    """Fill missing keys with the schema's defaults, recursively; known keys in its order.

    The order of a file's keys then means nothing, also not in what commands are given.
    """
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
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
            _fill(item, sub, root)
    for branch in schema.get("allOf", ()):
        if Validator(branch["if"]).is_valid(value):
            _fill(value, branch["then"], root)


def _cross_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What is wrong across keys, most telling first."""
    datasets = config["datasets"]
    for kind, names, known in (
        ("policy", config["grid"]["policies"], FAMILIES),
        ("method", config["grid"]["methods"], METHODS),
    ):
        for name in names:
            if name not in known:
                yield unknown(kind, name, known)
    users = {
        f"tasks.{name}": task["dataset"]
        for name, task in config["tasks"].items()
        if "dataset" in task
    }
    users["train"] = config["train"]["dataset"]
    for user in ("fidelity", "maps"):
        if config[user]:
            users[user] = config[user]["dataset"]
    for user, name in users.items():
        if name not in datasets:
            error = unknown("data set", name, datasets)
            yield ConfigError(f"{user}.dataset: {error}")
    for name, model in config["models"].items():
        package = model["weights"].get("package")
        carriers = [p.name for p in packages().values() if p.source is None]
        if package is not None and package not in carriers:
            error = unknown("package of weights", package, carriers)
            yield ConfigError(f"models.{name}.weights: {error}")
    for name, dataset in datasets.items():
        yield from _dataset_checks(name, dataset)
    for name, task in config["tasks"].items():
        for check in TASK_CHECKS[task["kind"]]:
            yield from check(f"tasks.{name}", task, config)
    if not (config["tasks"] or config["fidelity"] or config["latency"]):
        yield ConfigError("tasks: nothing is measured; give a task, fidelity or latency.")
    yield from _sparsity_checks(config)
    yield from _ablation_checks(config)
    yield from _map_checks(config)
    yield from _latency_checks(config)
    yield from _disk_checks(config)
    needed = {
        f"tasks.{name}": task[COUNTED[task["kind"]]]
        for name, task in config["tasks"].items()
        if task["kind"] in COUNTED
    }
    needed["train"] = config["train"]["sequences"]
    needed |= {user: config[user]["windows"] for user in ("fidelity", "maps") if config[user]}
    for user, count in needed.items():
        there = _at_most(datasets[users[user]])
        if count > there:
            yield ConfigError(
                f"{user}: {count} windows or samples need as many documents, but '{users[user]}' "
                f"is limited to {there}."
            )
    yield from _place_checks(config)
    yield from _size_checks(config)
    trained = datasets[config["train"]["dataset"]]
    for user, name in users.items():
        if user != "train" and _overlap(trained, datasets[name]):
            yield ConfigError(
                f"{user} measures on '{name}', which shares documents with the training data set "
                f"'{config['train']['dataset']}'; use another split, or `documents` ranges apart."
            )


def _place_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Folders of intermediate files that are other files' folders."""
    scratch = config["scratch"]
    for folder in (scratch, os.path.join(scratch, config["experiment"])):
        first = os.path.relpath(folder).split(os.sep)[0]  # it may lead back here: ../here/results
        if first in OURS:
            yield ConfigError(f"scratch: '{first}' holds other files; name a folder of its own.")
            break
    if config["experiment"] == "downloads":
        yield ConfigError("experiment: the folder 'downloads' is shared by all; use another name.")


def _size_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """More jobs than can be planned."""
    layers = {name: model["num_layers"] for name, model in config["models"].items()}
    per_job = config["train"]["layers_per_job"], config["dump"]["layers_per_job"]
    trains, dumps = ({x: -(-n // size) for x, n in layers.items()} for size in per_job)
    jobs = sum(dumps.values()) + sum(trains[x.model] for x in grid.trainings(config))
    jobs += sum(1 for _ in grid.task_cells(config))
    if jobs > MOST_JOBS:
        yield ConfigError(
            f"the experiment takes {jobs} jobs, and {MOST_JOBS} can be planned; split it, or raise "
            "train.layers_per_job."
        )


def _dataset_checks(name: str, dataset: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What a source needs, and ranges that hold something."""
    for key in NEEDED[dataset["source"]]:
        if key not in dataset:
            yield ConfigError(f"datasets.{name}: the source {dataset['source']} needs '{key}'.")
    if _at_most(dataset) < 1:
        yield ConfigError(f"datasets.{name}: documents {dataset['documents']} holds none.")


def _at_most(dataset: Mapping[str, Any]) -> float:
    """How many documents a data set can have, as far as the configuration says."""
    start, stop = dataset.get("documents", [0, math.inf])
    return float(min(stop, dataset.get("limit", math.inf)) - start)


def _summaries_checks(
    place: str, task: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """What is wrong with a task of summaries."""
    datasets = config["datasets"]
    if task["template"] not in templates():
        error = unknown("template", task["template"], templates())
        yield ConfigError(f"{place}.template: {error}")
    shots, pool = task["demonstrations"], task.get("demonstration_dataset")
    if bool(shots) != (pool is not None):
        yield ConfigError(
            f"{place}: {shots} demonstrations and demonstration_dataset {pool or 'missing'}; "
            "give both or neither."
        )
    if pool is not None:
        yield from _pool_checks(place, "demonstration_dataset", pool, task["dataset"], datasets)
    for name in filter(None, (task["dataset"], pool)):
        source = datasets[name]["source"]
        if source in WITHOUT_SUMMARIES:
            yield ConfigError(f"{place}: the documents of '{name}' ({source}) have no summaries.")
    for name, model in config["models"].items():
        if task["max_new_tokens"] >= model["context"]:
            yield ConfigError(
                f"{place}: {task['max_new_tokens']} new tokens leave no room for a prompt in the "
                f"context of {model['context']} of models.{name}."
            )


def _train_sparsities(config: Mapping[str, Any]) -> Mapping[str, list[float]]:
    """Train sparsities by policy, as far as the configuration names them."""
    wanted = config["grid"]["train_sparsities"]
    if isinstance(wanted, Mapping):
        return wanted
    return dict.fromkeys(config["grid"]["policies"], wanted)


def _trained_checks(
    place: str, trained: Mapping[str, list[float]], policy: str, sparsity: float
) -> Iterator[ConfigError]:
    """Whether there are kernels of a policy at a sparsity."""
    if sparsity not in trained.get(policy, ()):
        yield ConfigError(
            f"{place}: no kernels are trained for {policy} at {sparsity}; "
            "grid.train_sparsities says which are."
        )


def _ablation_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What is wrong with the studies beside the grid."""
    trained, tasks = _train_sparsities(config), config["tasks"]
    for name, study in config["ablations"].items():
        if study is None:
            continue
        place = f"ablations.{name}"
        if name != "scores" and not grid.needs_training(config):
            yield ConfigError(f"{place}: compares LESS; put `less` into grid.methods.")
        if study["task"] not in tasks:
            error = unknown("task", study["task"], tasks)
            yield ConfigError(f"{place}.task: {error}")
            continue
        summaries = tasks[study["task"]]["kind"] == "summaries"
        if summaries != (name == "prompt_lengths"):
            kind = "a task of summaries" if name == "prompt_lengths" else "a task without summaries"
            yield ConfigError(f"{place}.task: '{study['task']}' is not {kind}.")
        for policy in study.get("policies", [study.get("policy")]):
            if policy not in config["grid"]["policies"]:
                yield ConfigError(f"{place}: '{policy}' is none of grid.policies.")
            elif name != "prompt_lengths":  # which has kernels of its own
                for sparsity in study.get("sparsities", [study.get("sparsity")]):
                    yield from _trained_checks(place, trained, policy, sparsity)
        for name_of_model, model in config["models"].items():
            longest = max(study.get("lengths", [0]))
            if longest + tasks[study["task"]].get("max_new_tokens", 0) > model["context"]:
                yield ConfigError(
                    f"{place}.lengths: a prompt of {longest} tokens and its summary do not fit "
                    f"into the context of {model['context']} of models.{name_of_model}."
                )
            for size in study.get("sizes", ()):
                spared = state_tokens(size) - state_tokens(config["train"]["kernel"]["kernel_size"])
                if budget_tokens(study["sparsity"], model["context"]) - spared < 2:
                    yield ConfigError(
                        f"{place}.sizes: the state of R = {size} takes the whole budget of "
                        f"models.{name_of_model} at {study['sparsity']}."
                    )


def _disk_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """A bound of the disk that can be kept."""
    bound = config["dump"]["disk_gib"]
    if bound is None:
        return
    shapeless = [name for name, model in config["models"].items() if model["shape"] is None]
    if shapeless:
        yield ConfigError(f"dump.disk_gib: needs models.{shapeless[0]}.shape to know the sizes.")
    elif config["dump"]["keep"]:
        yield ConfigError("dump.disk_gib: features that are kept are not bounded; set keep: false.")
    elif bundles_at_once(config) == 0:
        need = max(bundle_bytes(config, model) for model in config["models"]) / GIB
        yield ConfigError(
            f"dump.disk_gib: {bound:g} GiB do not hold one bundle of layers ({need:.1f} GiB); "
            "allow more, or lower dump.layers_per_job."
        )
    elif (span := bundles_of_a_training(config)) > (at_once := bundles_at_once(config) or 0):
        yield ConfigError(
            f"dump.disk_gib: {bound:g} GiB hold {at_once} bundles of layers, and a job that trains "
            f"{config['train']['layers_per_job']} layers reads {span}; allow more, or lower "
            "train.layers_per_job."
        )


def _map_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What is wrong with the attention maps."""
    maps, trained = config["maps"], _train_sparsities(config)
    for policy in maps["policies"] if maps else ():
        if policy not in config["grid"]["policies"]:
            yield ConfigError(f"maps: '{policy}' is none of grid.policies.")
            continue
        yield from _trained_checks("maps", trained, policy, maps["sparsity"])
    for name, model in config["models"].items():
        heads = (model["shape"] or {}).get("num_heads", math.inf)
        for layer, head in maps["heads"] if maps else ():
            if head >= heads:
                yield ConfigError(
                    f"maps.heads: models.{name} has no head {head}; its heads are 0 to {heads - 1}."
                )
            if layer >= model["num_layers"]:
                yield ConfigError(
                    f"maps.heads: models.{name} has no layer {layer}; its layers are 0 to "
                    f"{model['num_layers'] - 1}."
                )


def _latency_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What is wrong with the latency study."""
    study = config["latency"]
    if study is None:
        return
    for name in study["methods"]:
        if name not in METHODS:
            yield ConfigError(f"latency.methods: {unknown('method', name, METHODS)}")
            return
    for place, entry in (("", study), *((".settings", entry) for entry in study["settings"])):
        for policy in entry.get("policies", ()):
            if policy not in config["grid"]["policies"]:
                known = ", ".join(config["grid"]["policies"])
                yield ConfigError(
                    f"latency{place}.policies: {policy} is not of the grid ({known})."
                )
    for sparsity in study["sparsities"]:
        if not 0 < sparsity < 1:
            yield ConfigError(f"latency.sparsities: {sparsity} is not in (0, 1).")
            return
    names = [setting.name for setting in settings(config)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield ConfigError(f"latency.settings: {name} is there twice; give it all its policies.")
    for model in config["models"]:
        for setting in settings(config):
            try:
                budgets = [c.budget or 0 for c in contenders(config, model, setting)]
            except ConfigError as error:
                yield ConfigError(f"latency, models.{model}: {error}")
                return
            if max(budgets) >= setting.prompt:
                yield ConfigError(
                    f"latency.settings: a prompt of {setting.prompt} tokens does not fill a budget "
                    f"of {max(budgets)} (models.{model}), so nothing would be evicted."
                )


def _harness_checks(
    place: str, task: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """What is wrong with a task of lm-evaluation-harness."""
    pool = task.get("fewshot_dataset")
    if "dataset" not in task:
        for key in ("fewshot_dataset", "max_words"):
            if task.get(key) is not None:
                yield ConfigError(f"{place}.{key}: needs `dataset`, in place of the download.")
    elif pool is not None:
        yield from _pool_checks(place, "fewshot_dataset", pool, task["dataset"], config["datasets"])
    if pool is not None and not task["num_fewshot"]:
        yield ConfigError(f"{place}: fewshot_dataset is of use with num_fewshot only.")


def _pool_checks(
    place: str, key: str, pool: str, measured: str, datasets: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """What is wrong with the data set that demonstrations come from."""
    if pool not in datasets:
        yield ConfigError(f"{place}.{key}: {unknown('data set', pool, datasets)}")
    elif _overlap(datasets[pool], datasets[measured]):
        yield ConfigError(
            f"{place}: demonstrations from '{pool}' could be the documents that are measured, in "
            f"'{measured}'; use another split, or `documents` ranges apart."
        )


def _part_checks(
    place: str, task: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """What a task is restricted to, but the grid does not have."""
    for key, whole in (("policies", "policies"), ("sparsities", "test_sparsities")):
        for value in task.get(key, ()):
            if value not in config["grid"][whole]:
                known = ", ".join(map(str, config["grid"][whole]))
                yield ConfigError(f"{place}.{key}: {value} is not in grid.{whole} ({known}).")


TaskCheck = Callable[[str, Mapping[str, Any], Mapping[str, Any]], Iterator[ConfigError]]
TASK_CHECKS: dict[str, tuple[TaskCheck, ...]] = {
    "perplexity": (),
    "summaries": (_summaries_checks, _part_checks),
    "harness": (_harness_checks, _part_checks),
}
"""What is checked of each kind of task."""


def _sparsity_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    wanted, trained = config["grid"], _train_sparsities(config)
    missing = [policy for policy in wanted["policies"] if policy not in trained]
    if missing:
        yield ConfigError(
            f"grid.train_sparsities: none for {', '.join(missing)}; give every policy some."
        )
    everywhere = {
        "train_sparsities": sorted({x for each in trained.values() for x in each}),
        "test_sparsities": wanted["test_sparsities"],
    }
    for key, sparsities in everywhere.items():
        for sparsity in sparsities:
            if not 0 < sparsity < 1:
                yield ConfigError(f"grid.{key}: {sparsity} is not in (0, 1).")
    extra = state_tokens(config["train"]["kernel"]["kernel_size"])
    for name, model in config["models"].items():
        for sparsity in sorted({x for each in everywhere.values() for x in each}):
            try:
                budget = budget_tokens(sparsity, model["context"])
            except ConfigError as error:
                yield ConfigError(f"models.{name}: {error}")
                continue
            if budget + extra >= model["context"]:
                yield ConfigError(
                    f"models.{name}: sparsity {sparsity} means {budget} tokens (+{extra} for "
                    f"baseline_plus), which is not below the context of {model['context']}."
                )


def _overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two data sets can share documents: same text, same split, ranges not apart."""
    if any(_text_of(a).get(key) != _text_of(b).get(key) for key in WHICH_TEXT):
        return False
    (a_start, a_stop), (b_start, b_stop) = (x.get("documents", [0, math.inf]) for x in (a, b))
    return bool(a_start < b_stop and b_start < a_stop)


def _text_of(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """A data set with its keys' other spellings out of the way."""
    if dataset["source"] == "jsonl":
        return {"source": "jsonl", "path": os.path.normpath(dataset["path"])}
    if dataset["source"] == "wikipedia_sample":
        return {"source": "wikipedia_sample"}
    return dataset
