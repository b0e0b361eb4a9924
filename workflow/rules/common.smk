# Configuration, the grid, and the names of all files between rules.

import json
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import CliException, WorkflowError
from snakemake.logging import logger

# Steps run as `python -m pipeline`; rules need the same package to plan.
sys.path.insert(0, str(Path(workflow.basedir)))

from pipeline.experiment import config as configuration
from pipeline.experiment import grid, latency
from pipeline.report.contents import COMPARISON, FIGURES, PROVENANCE, TABLES, TEXTS
from pipeline.errors import LessError
from pipeline.experiment.cost import bundles_at_once, expectations
from pipeline.experiment.kinds import KINDS
from pipeline.storage.files import sha256
from pipeline.download.packages import package_of_source, packages
from pipeline.runtime.recorder import Recorder
from pipeline.runtime.history import NAME
from pipeline.storage.seals import discard_marked
from pipeline.runtime.code import ROOT as PACKAGE
from pipeline.runtime.code import code_of
from pipeline.text.prompts import get_template

try:
    CONFIG = configuration.complete(config)
except LessError as error:
    raise WorkflowError(f"configuration: {error}")


def refuse_limits_on_arrays():
    """Say so where a run would hang: the Slurm plugin (2.8) loses jobs of an array under a limit."""
    limited = workflow.resource_settings.nodes != sys.maxsize or "gpu" in workflow.global_resources
    if getattr(workflow.executor_settings, "array_jobs", None) and limited:
        raise WorkflowError(
            "job arrays know no limit on jobs or GPUs: leave out --jobs and --resources,"
            " or the arrays (--slurm-array-jobs '')."
        )


def discard_damaged():
    """Delete what the last run found damaged, so that this one makes it again."""
    for folder in (SCRATCH, DOWNLOADS):
        discard_marked(folder)


if workflow.storage_settings.default_storage_provider == "s3":
    from snakemake_storage_plugin_s3 import StorageObject

    # The plugin (0.3.6) remembers that a folder is absent, and would never see that a job made it.
    StorageObject.is_dir = lambda self: any(self.get_subkeys())


SCRATCH = Path(CONFIG["scratch"]) / CONFIG["experiment"]
DOWNLOADS = Path(CONFIG["scratch"]) / "downloads"

RESULTS = Path("results") / CONFIG["experiment"]
LOGS = Path("logs") / CONFIG["experiment"]
BENCHMARKS = SCRATCH / "benchmarks"
# From here on everything is made where Snakemake runs, and stays there, also where there is no
# shared file system: it is small, and people look at it.
TIDY = local(SCRATCH / "tidy.parquet")

MODELS, TASKS, TRAIN, GRID = (CONFIG[key] for key in ("models", "tasks", "train", "grid"))
SEED, DEVICE = CONFIG["seed"], CONFIG["device"]
GPUS = 1 if DEVICE == "cuda" else 0
os.environ.setdefault("LESS_KV_JOBS_PER_GPU", str(CONFIG["jobs_per_gpu"]))  # for jobs on this host
# Jobs ask for tensors in huge pages: page faults take much of a small model's forward pass
# otherwise (glibc 2.35 and later; docs/performance.md).
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
DATA_DIR = CONFIG["data_dir"]
FORMATS = ["md", "csv", "tex", "html"]

if workflow.is_main_process:
    for line in expectations(CONFIG):
        print(line, file=sys.stderr)
    if not workflow.output_settings.dryrun:  # a plan is made beside a run
        shown = None if workflow.output_settings.quiet else sys.stderr
        logger.addHandler(Recorder(LOGS / NAME, shown, CliException, discard_damaged))


wildcard_constraints:
    model="|".join(map(re.escape, MODELS)),
    dataset="|".join(map(re.escape, CONFIG["datasets"])),
    task="|".join(map(re.escape, TASKS)),
    policy="|".join(GRID["policies"]),
    sparsity=r"\d+(\.\d+)?(e-\d+)?",
    packed="(-packed)?",
    part=r"\d+",
    size=r"(-R\d+)?",
    study=r"(-[RPS]\d+)?",
    file="|".join(re.escape(package.file) for package in packages().values()),
    windows=r"\d+",
    setting=latency.PATTERN,


def samples_of(model, dataset, count, pack):
    """Windows of a data set, cut to a model's context."""
    packed = "-packed" if pack else ""
    return SCRATCH / "samples" / model / f"{dataset}-{count}{packed}.safetensors"


def features_of(model, part):
    """Features of one bundle of layers."""
    return SCRATCH / "features" / model / f"part{part}"


def kernels_of(training, form="safetensors"):
    """Kernels of all layers of a training, or their loss curves (`curves.parquet`)."""
    name = f"{training.policy}-{training.sparsity}{training.suffix}.{form}"
    return SCRATCH / "kernels" / training.model / name


def cell_file(cell):
    """Measurements of a cell."""
    name = (f"{cell.policy}-{cell.sparsity}" if cell.policy else "full") + cell.suffix
    folder = SCRATCH / KINDS[TASKS[cell.task]["kind"]].folder
    return folder / cell.model / cell.task / f"{name}.parquet"


def all_curves():
    """Loss curves of every training of the grid."""
    return [kernels_of(t, "curves.parquet") for t in grid.trainings(CONFIG) if t.size is None]


def measured():
    """Every file of measurements."""
    cells = [cell_file(cell) for cell in grid.task_cells(CONFIG)]
    if CONFIG["fidelity"]:
        cells += [
            SCRATCH / "fidelity" / cell.model / f"{cell.policy}-{cell.sparsity}.parquet"
            for cell in grid.policy_cells(CONFIG, "fidelity")
        ]
    return cells + all_latencies("parquet")


def results(pattern, **values):
    """Files that people look at; they stay where Snakemake runs."""
    return local(expand(RESULTS / pattern, **values))


def tables():
    """Every table in every format."""
    return results("tables/{name}.{form}", name=TABLES, form=FORMATS)


def examples():
    """Generated summaries side by side, if there are any."""
    wanted = any(task["kind"] == "summaries" for task in TASKS.values())
    forms = ["html", "md"] if wanted else []
    return results("examples.{form}", form=forms)


def comparison():
    """The paper's numbers beside ours."""
    return results("paper_vs_ours.{form}", form=["html", "md"])


def figures():
    """Every figure in both formats."""
    return results("figures/{name}.{form}", name=FIGURES, form=["svg", "png"])


def storage_options():
    """How Snakemake finds what lies in a default storage, on the command line."""
    found = workflow.spawned_job_args_factory
    words = [found.get_default_storage_provider_args(), *found.get_storage_provider_args()]
    return " ".join(filter(None, words))


def verbatim(text):
    """A parameter whose braces are no wildcards, whatever people wrote into the configuration."""
    return lambda wildcards: text


def growing(base):
    """A resource that grows with the attempt, so that a retry after a kill has more."""
    return lambda wildcards, attempt: base * attempt


memory = minutes = growing  # in MB; in minutes


def all_cores():
    """Cores of this machine that a run may use; eight where a cluster hands them out."""
    try:
        return workflow.cores
    except WorkflowError:
        return 8


def model_memory(wildcards, attempt):
    """Memory in MB of a job that loads a model."""
    return MODELS[wildcards.model]["memory_mb"] * attempt


# Weights


def package_files(wildcards):
    """The download that a model's weights come from, if any."""
    name = MODELS[wildcards.model]["weights"].get("package")
    return [DOWNLOADS / packages()[name].file] if name else []


# Text


def files_of(name):
    """The file that a data set is read from, if any: a download or JSON lines in `data_dir`."""
    dataset = CONFIG["datasets"][name]
    source, folder = dataset["source"], Path(DATA_DIR or "")
    package = package_of_source(source)
    if package:
        return [DOWNLOADS / package.file]
    if source == "jsonl":
        return [folder / dataset["path"]]
    copy = str(folder / dataset["local"]) if DATA_DIR and "local" in dataset else None
    return [copy] if copy and exists(copy) else []


def windows_source(wildcards):
    """The file that windows are cut from, if any."""
    return files_of(wildcards.dataset)


# Features


def dump_ranges(model):
    """Bundles of layers that one forward run writes."""
    return grid.layer_ranges(MODELS[model]["num_layers"], CONFIG["dump"]["layers_per_job"])


# Features are by far the largest files; without `dump.keep` they go once every layer is trained.
kept_or_temporary = (lambda path: path) if CONFIG["dump"]["keep"] else temp


def dump_after(wildcards):
    """Kernels whose training frees the disk for a bundle of layers, if disk is bounded."""
    at_once = bundles_at_once(CONFIG)
    if at_once is None:
        return []
    bundles = [(model, part) for model in MODELS for part in range(len(dump_ranges(model)))]
    place = bundles.index((wildcards.model, int(wildcards.part))) - at_once
    if place < 0:
        return []
    model, part = bundles[place]
    parts = grid.overlapping(train_ranges(model), *dump_ranges(model)[part])
    return [
        kernels_of(training).with_suffix("") / f"part{train_part}.safetensors"
        for training in grid.trainings(CONFIG)
        for train_part in parts
        if training.model == model
    ]


# Kernels


def train_ranges(model):
    """Bundles of layers that one job trains."""
    return grid.layer_ranges(MODELS[model]["num_layers"], TRAIN["layers_per_job"])


def features_for(wildcards):
    """Folders of features that hold the layers of a bundle."""
    layers = train_ranges(wildcards.model)[int(wildcards.part)]
    parts = grid.overlapping(dump_ranges(wildcards.model), *layers)
    return [features_of(wildcards.model, part) for part in parts]


def kernel_arguments(wildcards):
    """Sizes of the kernels that a job trains, as JSON."""
    own = {"kernel_size": int(wildcards.size[2:])} if wildcards.size else {}
    return json.dumps(TRAIN["kernel"] | own)


def parts_of(suffix):
    """Inputs of one training: what its jobs wrote, in order of layers."""

    def files(wildcards):
        name = f"{wildcards.policy}-{wildcards.sparsity}{wildcards.size}"
        folder = SCRATCH / "kernels" / wildcards.model / name
        return [
            folder / f"part{part}.{suffix}" for part in range(len(train_ranges(wildcards.model)))
        ]

    return files


# Measurements


def task_samples(wildcards):
    """Windows of a task's data set."""
    name = wildcards.get("task")
    task = TASKS[name] if name else CONFIG["fidelity"]
    return samples_of(wildcards.model, task["dataset"], task["windows"], task["pack"])


# The keys of a task that name data sets.
TEXT_KEYS = ["dataset", "demonstration_dataset", "fewshot_dataset"]


def task_source(key):
    """Input: the file that the data set under a key of the task is read from, if any."""
    return lambda wildcards: (
        files_of(TASKS[wildcards.task][key]) if key in TASKS[wildcards.task] else []
    )


def unfinished(wildcards):
    """Where a cell keeps its finished documents until all are."""
    folder = KINDS[TASKS[wildcards.task]["kind"]].folder
    cell = "-".join(wildcards[2:]) or "full"
    return SCRATCH / "unfinished" / folder / wildcards.model / wildcards.task / cell


# Tasks of lm-evaluation-harness


def task_definition(wildcards):
    """The text of a task that is a file of ours, so that a change of it is seen."""
    name = TASKS[wildcards.task]["task"]
    path = PACKAGE / "resources" / "tasks" / f"{name}.yaml"
    return path.read_text() if path.is_file() else ""


def harness_arguments(wildcards):
    """What a task asks and of which text, on the command line; its words are quoted here."""
    task, datasets = TASKS[wildcards.task], CONFIG["datasets"]
    words = ["--task", task["task"], "--context", MODELS[wildcards.model]["context"]]
    words += ["--shots", task["num_fewshot"]]
    for option, key in (("--dataset", "dataset"), ("--shots-from", "fewshot_dataset")):
        words += [option, json.dumps(datasets[task[key]])] if key in task else []
    for option, key in (("--limit", "limit"), ("--max-words", "max_words")):
        words += [] if task[key] is None else [option, task[key]]
    return " ".join(shlex.quote(str(word)) for word in words)


# Summaries


def prompt_arguments(wildcards):
    """What a task's prompts are made of, on the command line; its words are quoted here."""
    task, datasets = TASKS[wildcards.task], CONFIG["datasets"]
    study, setting = grid.study_of(wildcards.study)
    lengths = CONFIG["ablations"]["prompt_lengths"]
    count = task["samples"] if study == grid.GRID else lengths["samples"]
    words = ["--dataset", json.dumps(datasets[task["dataset"]])]
    words += ["--template", task["template"], "--count", count]
    if study == "prompt_length":
        words += ["--cut", setting, "--longest-cut", max(lengths["lengths"])]
    if task["demonstrations"] and study == grid.GRID:  # of a set length, without examples
        pool = json.dumps(datasets[task["demonstration_dataset"]])
        words += ["--shots", task["demonstrations"], "--shots-from", pool]
    words += ["--room", MODELS[wildcards.model]["context"] - task["max_new_tokens"]]
    return " ".join(shlex.quote(str(word)) for word in words)


def decoding_arguments(wildcards):
    """How a task's summaries are decoded, on the command line."""
    keys = ["max_new_tokens", "temperature", "batch_size"]
    return " ".join(f"--{key.replace('_', '-')} {TASKS[wildcards.task][key]}" for key in keys)


def cell_trainings(wildcards):
    """What a cell's kernels come from: of the grid all, of an ablation those of its own sparsity."""
    if "policy" not in wildcards.keys() or not grid.needs_training(CONFIG):
        return []
    study, setting = grid.study_of(wildcards.get("study", ""))
    size = setting if study == "kernel_size" and setting != TRAIN["kernel"]["kernel_size"] else None
    sparsities = (
        grid.train_sparsities(CONFIG, wildcards.policy)
        if study == grid.GRID
        else [float(wildcards.sparsity)]
    )
    return [grid.Training(wildcards.model, wildcards.policy, x, size) for x in sparsities]


def trained_kernels(wildcards):
    """Kernels that a cell compares."""
    return [kernels_of(training) for training in cell_trainings(wildcards)]


def cell_arguments(wildcards):
    """What names a cell on the command line; its words are quoted here.

    It does not take `input`: Snakemake would not notice when what it returns changes.
    """
    study, setting = grid.study_of(wildcards.get("study", ""))
    size = TRAIN["kernel"]["kernel_size"]
    budget = grid.budget(CONFIG, wildcards.model, float(wildcards.sparsity))
    scores = grid.SCORES[setting] if study == "scores" else GRID["scores"]
    if study == "kernel_size":  # the budget pays for a larger state
        size, budget = setting, budget - (setting - size) // 2
    words = ["--policy", wildcards.policy, "--budget", budget, "--scores", scores]
    words += ["--methods", *grid.methods_of(CONFIG, study), "--seed", SEED]
    words += ["--kernel-size", size]
    words += ["--train-sparsities", *(t.sparsity for t in cell_trainings(wildcards))]
    return " ".join(shlex.quote(str(word)) for word in words)


def measured_by(model, what, policy=True):
    """What all measurements of a task, of fidelity or of latency share in a run, as a hash.

    Without a ``policy`` it is the full cache's, which knows neither seeds nor trainings.
    """
    step = KINDS[TASKS[what]["kind"]].step if what in TASKS else what
    more, code = {}, []
    if what == "latency":  # whose kernels are untrained
        more = {"seed": SEED, "kernel": TRAIN["kernel"]}
    elif policy:
        more = {"seed": SEED, "scores": GRID["scores"], "methods": GRID["methods"]}
        if grid.needs_training(CONFIG):
            more, code = more | TRAIN, [code_of("train")]
    return configuration.settings_hash(CONFIG, model, what, more, code_of(step), *code)


def cell_label(wildcards):
    """Columns that say what a file of measurements is about."""
    sparsity = wildcards.get("sparsity")
    study, setting = grid.study_of(wildcards.get("study", ""))
    label = {"model": wildcards.model, "task": wildcards.get("task", "fidelity")}
    label |= {"sparsity": None if sparsity is None else float(sparsity)}
    label |= {"study": study, "setting": setting}
    policy = wildcards.get("policy") is not None
    return json.dumps(label | {"measured_by": measured_by(label["model"], label["task"], policy)})


# Tables, figures and the comparison with the paper


def titled(title):
    """Labels of a result in the report: its title alone.

    A further label that halves a category (three tables, three figures) becomes a switch there,
    and the page breaks over a title that exists on one side of it (Snakemake 9).
    """
    return {"shows": title}


PAPER = sha256(PACKAGE / "resources" / "paper.yaml")


def own_labels():
    """What the columns of measurements may say, on the command line."""
    settings = [setting.name for setting in latency.settings(CONFIG)]
    known = {"model": MODELS, "task": [*TASKS, "fidelity", *settings], "policy": GRID["policies"]}
    measured = [*TASKS, *(what for what in ("fidelity", "latency") if CONFIG[what])]
    known["measured_by"] = {
        measured_by(model, what, policy)
        for model in MODELS
        for what in measured
        for policy in (True, False)
    }
    return json.dumps({column: sorted(names) for column, names in known.items()})


# Attention maps


def map_samples(wildcards):
    """Windows whose first one is shown."""
    maps = CONFIG["maps"]
    return samples_of(wildcards.model, maps["dataset"], maps["windows"], maps["pack"])


def map_trainings(model):
    """What the kernels of the maps come from."""
    maps = CONFIG["maps"]
    return [grid.Training(model, policy, maps["sparsity"]) for policy in maps["policies"]]


def map_kernels(wildcards):
    """Kernels of the maps."""
    return [kernels_of(training) for training in map_trainings(wildcards.model)]


def map_arguments(wildcards):
    """What is shown, on the command line; its words are quoted here."""
    maps = CONFIG["maps"]
    words = ["--heads", *(f"{layer}:{head}" for layer, head in maps["heads"])]
    words += ["--policies", *(t.policy for t in map_trainings(wildcards.model))]
    words += ["--budget", grid.budget(CONFIG, wildcards.model, maps["sparsity"])]
    words += ["--scores", GRID["scores"]]
    return " ".join(shlex.quote(str(word)) for word in words)


def all_maps(form):
    """Files of the maps (`safetensors`) or spectra (`spectrum.parquet`) of every model."""
    return [SCRATCH / "maps" / f"{model}.{form}" for model in MODELS if CONFIG["maps"]]


# Latency


def latency_model(wildcards):
    """The folder of a model that is not made of random weights."""
    own = "random" in MODELS[wildcards.model]["weights"]
    return [] if own else SCRATCH / "models" / wildcards.model


def latency_weights(wildcards):
    """Random weights, which the study makes on the device, on the command line."""
    weights = MODELS[wildcards.model]["weights"]
    return f"--weights {shlex.quote(json.dumps(weights))}" if "random" in weights else ""


def has_folder(model):
    """Whether a model's weights are on disk; the latency study makes random ones on the device."""
    beyond = grid.needs_training(CONFIG) or any(CONFIG[x] for x in ("tasks", "fidelity", "maps"))
    return bool(beyond) or "random" not in MODELS[model]["weights"]


def latency_arguments(wildcards):
    """What a setting compares, on the command line; its words are quoted here."""
    study, model = CONFIG["latency"], MODELS[wildcards.model]
    setting = latency.Setting.of(wildcards.setting)
    found = [vars(c) for c in latency.contenders(CONFIG, wildcards.model, setting)]
    words = ["--dtype", model["dtype"], "--device", DEVICE, "--setting", setting.name]
    words += ["--contenders", json.dumps(found), "--repetitions", study["repetitions"]]
    sizes = {key: TRAIN["kernel"][key] for key in ("kernel_size", "hidden_size")}
    words += ["--sizes", json.dumps(sizes), "--seed", SEED]
    words += ["--forms", *latency.FORMS[: 2 if study["generate"] else 1]]
    label = {"model": wildcards.model, "task": setting.name}
    label["measured_by"] = measured_by(wildcards.model, "latency")
    words += ["--label", json.dumps(label)]
    return " ".join(shlex.quote(str(word)) for word in words)


def all_latencies(form):
    """Times (`parquet`) or operators (`operators.parquet`) of every model and setting."""
    names = [setting.name for setting in latency.settings(CONFIG)]
    return [SCRATCH / "latency" / model / f"{name}.{form}" for model in MODELS for name in names]


# Provenance


def windows_cut():
    """(data set, windows, pack) of every sample of text that the run needs for each model."""
    users = [task | {"count": task["windows"]} for task in TASKS.values() if "windows" in task]
    users += [
        CONFIG[x] | {"count": CONFIG[x]["windows"]} for x in ("fidelity", "maps") if CONFIG[x]
    ]
    users += [TRAIN | {"count": TRAIN["sequences"]}] if grid.needs_training(CONFIG) else []
    return {(user["dataset"], user["count"], user["pack"]) for user in users}


def prompts_of(cell):
    """Prompts of a cell of a summaries task."""
    study = cell.suffix if cell.study == "prompt_length" else ""
    return SCRATCH / "prompts" / cell.model / f"{cell.task}{study}.json"


def hashed_inputs():
    """What a run is traced by: downloads and local texts, weights, samples, prompts, kernels."""
    found = {
        DOWNLOADS / package.file
        for model in MODELS.values()
        for package in [packages().get(model["weights"].get("package"))]
        if package
    }
    texts = {task[key] for task in TASKS.values() for key in TEXT_KEYS if key in task}
    texts |= {name for name, _, _ in windows_cut()}
    found |= {path for name in texts for path in files_of(name)}
    found |= {SCRATCH / "models" / model for model in MODELS if has_folder(model)}
    for model in MODELS:
        found |= {samples_of(model, *text) for text in windows_cut()}
    found |= {prompts_of(cell) for cell in grid.task_cells(CONFIG, "summaries")}
    return sorted(found, key=str) + [kernels_of(training) for training in grid.trainings(CONFIG)]


# Command lines


def longest_commands():
    """Words of the commands that take the most files."""
    yield measured()
    yield [json.dumps(CONFIG), *hashed_inputs(), *tables(), *figures()]
    for training in grid.trainings(CONFIG):
        parts = range(len(train_ranges(training.model)))
        yield [
            kernels_of(training).with_suffix("") / f"part{part}.safetensors" for part in parts
        ] * 2


# Linux takes 128 KiB; better said before a run than at its end.
if any(sum(len(shlex.quote(str(w))) + 1 for w in words) > 120_000 for words in longest_commands()):
    raise WorkflowError(
        "configuration: the files of this experiment do not fit on one command line; split it, for"
        " example by model or task."
    )
