"""What is wrong across the sections of a configuration, which no section can say alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..download.packages import packages
from ..errors import ConfigError, unknown
from ..policies import FAMILIES, budget_tokens, state_tokens
from ..storage.disk import GIB
from . import grid
from .cost import bundle_bytes, bundles_at_once, bundles_of_a_training
from .kinds import KINDS
from .latency import contenders, settings
from .methods import METHODS
from .task_checks import overlap

NEEDED = {"aclsum": ["split"], "wikipedia_sample": [], "hub": ["path", "split"], "jsonl": ["path"]}
"""Keys of a data set without which its source cannot be read."""
MOST_JOBS = 50_000
"""Planning takes seconds for every thousand."""
OURS = (".", ".git", ".snakemake", "results", "logs", "workflow", "pipeline")
"""Folders beside the Snakefile that intermediate files would mix with."""


def problems_across(config: Mapping[str, Any]) -> list[ConfigError]:
    """Return what is wrong across sections, most telling first.

    What others build on comes first: where it has problems, the rest is not looked at.
    """
    for checks in STAGES:
        problems = [problem for check in checks for problem in check(config)]
        if problems:
            return problems
    return []


def users_of_text(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the data sets that are measured or trained on, by the place that names each."""
    users = {
        f"tasks.{name}": task["dataset"]
        for name, task in config["tasks"].items()
        if "dataset" in task
    }
    users["train"] = config["train"]["dataset"]
    return users | {user: config[user]["dataset"] for user in ("fidelity", "maps") if config[user]}


def name_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield names of policies, methods, data sets and packages that are unknown."""
    for kind, names, known in (
        ("policy", config["grid"]["policies"], FAMILIES),
        ("method", config["grid"]["methods"], METHODS),
    ):
        for name in names:
            if name not in known:
                yield unknown(kind, name, known)
    for user, name in users_of_text(config).items():
        if name not in config["datasets"]:
            yield ConfigError(f"{user}.dataset: {unknown('data set', name, config['datasets'])}")
    for name in sorted({"fidelity", "latency"} & config["tasks"].keys()):
        yield ConfigError(
            f"tasks.{name}: '{name}' is a study of its own; give the task another name."
        )
    for name, model in config["models"].items():
        package = model["weights"].get("package")
        carriers = [p.name for p in packages().values() if p.source is None]
        if package is not None and package not in carriers:
            error = unknown("package of weights", package, carriers)
            yield ConfigError(f"models.{name}.weights: {error}")
    for name, dataset in config["datasets"].items():
        yield from dataset_checks(name, dataset)


def task_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield what is wrong with each task by its kind, and that nothing is measured."""
    for name, task in config["tasks"].items():
        for check in KINDS[task["kind"]].checks:
            yield from check(f"tasks.{name}", task, config)
    if not (config["tasks"] or config["fidelity"] or config["latency"]):
        yield ConfigError("tasks: nothing is measured; give a task, fidelity or latency.")


def count_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield who needs more documents than its data set can have."""
    users = users_of_text(config)
    needed = {
        f"tasks.{name}": task[counted]
        for name, task in config["tasks"].items()
        if (counted := KINDS[task["kind"]].counted)
    }
    needed["train"] = config["train"]["sequences"]
    needed |= {user: config[user]["windows"] for user in ("fidelity", "maps") if config[user]}
    for user, count in needed.items():
        there = at_most(config["datasets"][users[user]])
        if count > there:
            yield ConfigError(
                f"{user}: {count} windows or samples need as many documents, but '{users[user]}' "
                f"is limited to {there}."
            )


def overlap_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield who measures on text that may be trained on."""
    datasets, training = config["datasets"], config["train"]["dataset"]
    for user, name in users_of_text(config).items():
        if user != "train" and overlap(datasets[training], datasets[name]):
            yield ConfigError(
                f"{user} measures on '{name}', which shares documents with the training data set "
                f"'{training}'; use another split, or `documents` ranges apart."
            )


def place_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield folders of intermediate files that are other files' folders."""
    scratch = config["scratch"]
    for folder in (scratch, os.path.join(scratch, config["experiment"])):
        first = os.path.relpath(folder).split(os.sep)[0]  # it may lead back here: ../here/results
        if first in OURS:
            yield ConfigError(f"scratch: '{first}' holds other files; name a folder of its own.")
            break
    if config["experiment"] == "downloads":
        yield ConfigError("experiment: the folder 'downloads' is shared by all; use another name.")


def size_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield more jobs than can be planned."""
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


def dataset_checks(name: str, dataset: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield what a source lacks, and ranges that hold nothing."""
    for key in NEEDED[dataset["source"]]:
        if key not in dataset:
            yield ConfigError(f"datasets.{name}: the source {dataset['source']} needs '{key}'.")
    if at_most(dataset) < 1:
        yield ConfigError(f"datasets.{name}: documents {dataset['documents']} holds none.")


def at_most(dataset: Mapping[str, Any]) -> float:
    """Return how many documents a data set can have, as far as the configuration says."""
    start, stop = dataset.get("documents", [0, math.inf])
    return float(min(stop, dataset.get("limit", math.inf)) - start)


def train_sparsities(config: Mapping[str, Any]) -> Mapping[str, list[float]]:
    """Return train sparsities by policy, as far as the configuration names them."""
    wanted = config["grid"]["train_sparsities"]
    if isinstance(wanted, Mapping):
        return wanted
    return dict.fromkeys(config["grid"]["policies"], wanted)


def trained_checks(
    place: str, trained: Mapping[str, list[float]], policy: str, sparsity: float
) -> Iterator[ConfigError]:
    """Yield that there are no kernels of a policy at a sparsity, if so."""
    if sparsity not in trained.get(policy, ()):
        yield ConfigError(
            f"{place}: no kernels are trained for {policy} at {sparsity}; "
            "grid.train_sparsities says which are."
        )


def ablation_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield what is wrong with the studies beside the grid."""
    trained, tasks = train_sparsities(config), config["tasks"]
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
        summaries = KINDS[tasks[study["task"]]["kind"]].prompts
        if summaries != (name == "prompt_lengths"):
            kind = "a task of summaries" if name == "prompt_lengths" else "a task without summaries"
            yield ConfigError(f"{place}.task: '{study['task']}' is not {kind}.")
        for policy in study.get("policies", [study.get("policy")]):
            if policy not in config["grid"]["policies"]:
                yield ConfigError(f"{place}: '{policy}' is none of grid.policies.")
            elif name != "prompt_lengths":  # which has kernels of its own
                for sparsity in study.get("sparsities", [study.get("sparsity")]):
                    yield from trained_checks(place, trained, policy, sparsity)
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


def disk_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield why a bound of the disk cannot be kept."""
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


def map_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield what is wrong with the attention maps."""
    maps, trained = config["maps"], train_sparsities(config)
    for policy in maps["policies"] if maps else ():
        if policy not in config["grid"]["policies"]:
            yield ConfigError(f"maps: '{policy}' is none of grid.policies.")
            continue
        yield from trained_checks("maps", trained, policy, maps["sparsity"])
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


def latency_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield what is wrong with the latency study."""
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


def sparsity_checks(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield sparsities that mean no budget, or are given for no policy."""
    wanted, trained = config["grid"], train_sparsities(config)
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


STAGES = (
    (name_checks,),
    (task_checks, sparsity_checks),
    (ablation_checks, map_checks, latency_checks, disk_checks, count_checks),
    (place_checks, size_checks, overlap_checks),
)
"""All checks of a whole configuration; each stage takes for granted what those before it check."""
