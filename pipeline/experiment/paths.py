"""Where the files of an experiment lie, between steps and for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..download.packages import package_of_source, packages
from . import grid, latency
from .grid import Cell, Training
from .kinds import KINDS

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Paths:
    """Names of all files, from the completed configuration; rules put wildcards in their place.

    Attributes:
        scratch: folder of what lies between steps.
        downloads: folder that experiments share.
        results, logs: folders that stay.
    """

    scratch: Path
    downloads: Path
    results: Path
    logs: Path

    @classmethod
    def of(cls, config: Config) -> Paths:
        """Return the names for a configuration."""
        scratch, name = Path(config["scratch"]), config["experiment"]
        return cls(
            scratch / name, scratch / "downloads", Path("results") / name, Path("logs") / name
        )

    @property
    def benchmarks(self) -> Path:
        """Times and memory of every job."""
        return self.scratch / "benchmarks"

    @property
    def tidy(self) -> Path:
        """The tidy table of all measurements."""
        return self.scratch / "tidy.parquet"

    def model(self, model: str) -> Path:
        """Return weights as a transformers folder."""
        return self.scratch / "models" / model

    def samples(self, model: str, dataset: str, count: int | str, packed: str = "") -> Path:
        """Return windows of a data set for a model; ``packed`` is "-packed" or nothing."""
        return self.scratch / "samples" / model / f"{dataset}-{count}{packed}.safetensors"

    def samples_of(self, model: str, user: Mapping[str, Any]) -> Path:
        """Return windows that a part of the configuration reads."""
        count = user["windows"] if "windows" in user else user["sequences"]
        return self.samples(model, user["dataset"], count, "-packed" if user["pack"] else "")

    def features(self, model: str, part: int | str) -> Path:
        """Return features of one bundle of layers."""
        return self.scratch / "features" / model / f"part{part}"

    def kernels(self, training: Training, form: str = "safetensors") -> Path:
        """Return kernels of all layers of a training, or their loss curves (`curves.parquet`)."""
        folder = self.scratch / "kernels" / training.model / training.kernel
        return folder / f"{training.name}.{form}"

    def part(self, training: Training, part: int | str, form: str = "safetensors") -> Path:
        """Return kernels of one bundle of layers, or their loss curves (`parquet`)."""
        return self.kernels(training).with_suffix("") / f"part{part}.{form}"

    def unfinished(self, *names: str) -> Path:
        """Return what a job keeps until it is finished, so that it goes on after a kill."""
        return self.scratch.joinpath("unfinished", *names)

    def prompts(self, cell: Cell) -> Path:
        """Return prompts of a cell of a summaries task."""
        study = cell.suffix if cell.study == "prompt_length" else ""
        return self.scratch / "prompts" / cell.model / f"{cell.task}{study}.json"

    def measured(self, folder: str, cell: Cell) -> Path:
        """Return measurements of a cell of a task."""
        return self.scratch / folder / cell.model / cell.task / f"{cell.name}.parquet"

    def fidelity(self, cell: Cell) -> Path:
        """Return Hellinger distances of a cell."""
        return self.scratch / "fidelity" / cell.model / f"{cell.name}.parquet"

    def maps(self, model: str, form: str) -> Path:
        """Return maps (`safetensors`) or spectra (`spectrum.parquet`) of a model."""
        return self.scratch / "maps" / f"{model}.{form}"

    def latency(self, model: str, setting: str, form: str) -> Path:
        """Return times (`parquet`) or operators (`operators.parquet`) of a setting."""
        return self.scratch / "latency" / model / f"{setting}.{form}"


def cell_file(config: Config, cell: Cell) -> Path:
    """Return where the measurements of a task's cell are."""
    folder = KINDS[config["tasks"][cell.task]["kind"]].folder
    return Paths.of(config).measured(folder, cell)


def measured(config: Config) -> list[Path]:
    """Return every file of measurements."""
    paths = Paths.of(config)
    files = [cell_file(config, cell) for cell in grid.task_cells(config)]
    if config["fidelity"]:
        files += [paths.fidelity(cell) for cell in grid.policy_cells(config, "fidelity")]
    return files + latencies(config, "parquet")


def latencies(config: Config, form: str) -> list[Path]:
    """Return times (`parquet`) or operators (`operators.parquet`) of every model and setting."""
    paths, settings = Paths.of(config), latency.settings(config)
    return [paths.latency(model, s.name, form) for model in config["models"] for s in settings]


def maps(config: Config, form: str) -> list[Path]:
    """Return maps (`safetensors`) or spectra (`spectrum.parquet`) of every model, if any."""
    return [Paths.of(config).maps(model, form) for model in config["models"] if config["maps"]]


def curves(config: Config) -> list[Path]:
    """Return the loss curves of every training of the grid."""
    paths = Paths.of(config)
    trained = (training for training in grid.trainings(config) if training.size is None)
    return [paths.kernels(training, "curves.parquet") for training in trained]


def parts_of(config: Config, training: Training, form: str) -> list[Path]:
    """Return what the jobs of a training write, in order of layers."""
    paths, count = Paths.of(config), len(train_ranges(config, training.model))
    return [paths.part(training, part, form) for part in range(count)]


def dump_ranges(config: Config, model: str) -> list[tuple[int, int]]:
    """Return the bundles of layers that one forward run writes: [start, stop)."""
    return grid.layer_ranges(
        config["models"][model]["num_layers"], config["dump"]["layers_per_job"]
    )


def train_ranges(config: Config, model: str) -> list[tuple[int, int]]:
    """Return the bundles of layers that one job trains: [start, stop)."""
    return grid.layer_ranges(
        config["models"][model]["num_layers"], config["train"]["layers_per_job"]
    )


def features_for(config: Config, model: str, part: int) -> list[Path]:
    """Return the folders of features that hold the layers of a training's bundle."""
    layers = train_ranges(config, model)[part]
    dumps = grid.overlapping(dump_ranges(config, model), *layers)
    return [Paths.of(config).features(model, dump) for dump in dumps]


def freed_by(config: Config, model: str, part: int, at_once: int | None) -> list[Path]:
    """Return kernels whose training frees the disk for a bundle of layers, if disk is bounded.

    Args:
        at_once: bundles that fit on the disk; None: all.
    """
    if at_once is None:
        return []
    bundles = [(m, p) for m in config["models"] for p in range(len(dump_ranges(config, m)))]
    place = bundles.index((model, part)) - at_once
    if place < 0:
        return []
    before, layers = bundles[place][0], dump_ranges(config, bundles[place][0])[bundles[place][1]]
    parts = grid.overlapping(train_ranges(config, before), *layers)
    paths = Paths.of(config)
    return [
        paths.part(training, train_part)
        for training in grid.trainings(config)
        for train_part in parts
        if training.model == before
    ]


def weights_file(config: Config, model: str) -> list[Path]:
    """Return the download that a model's weights come from, if any."""
    name = config["models"][model]["weights"].get("package")
    return [Paths.of(config).downloads / packages()[name].file] if name else []


def text_file(config: Config, dataset: str) -> tuple[Path | None, bool]:
    """Return the file that a data set is read from, if any, and whether it must be there.

    A download or JSON lines in `data_dir` must be; a local copy of what the hub has need not.
    """
    entry, folder = config["datasets"][dataset], config["data_dir"]
    package = package_of_source(entry["source"])
    if package:
        return Paths.of(config).downloads / package.file, True
    if entry["source"] == "jsonl":
        return Path(folder or "") / entry["path"], True
    return (Path(folder) / entry["local"], False) if folder and "local" in entry else (None, False)


def has_folder(config: Config, model: str) -> bool:
    """Tell whether a model's weights are on disk; latency makes random ones on the device."""
    beyond = grid.needs_training(config) or any(config[x] for x in ("tasks", "fidelity", "maps"))
    return bool(beyond) or "random" not in config["models"][model]["weights"]


def readers_of_windows(config: Config) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of the configuration that read windows of tokens."""
    yield from (task for task in config["tasks"].values() if "windows" in task)
    yield from (config[name] for name in ("fidelity", "maps") if config[name])
    if grid.needs_training(config):
        yield config["train"]


TEXT_KEYS = ("dataset", "demonstration_dataset", "fewshot_dataset")
"""The keys of a task that name data sets."""


def texts_read(config: Config) -> list[str]:
    """Return the data sets that a run reads."""
    tasks = config["tasks"].values()
    names = {task[key] for task in tasks for key in TEXT_KEYS if key in task}
    return sorted(names | {user["dataset"] for user in readers_of_windows(config)})


def made_inputs(config: Config) -> list[Path]:
    """Return what a run is traced by beside its texts: downloads, weights, samples, prompts."""
    paths, models = Paths.of(config), config["models"]
    files = {file for model in models for file in weights_file(config, model)}
    files |= {paths.model(model) for model in models if has_folder(config, model)}
    files |= {paths.samples_of(m, user) for m in models for user in readers_of_windows(config)}
    for cell in grid.task_cells(config):
        if KINDS[config["tasks"][cell.task]["kind"]].prompts:
            files.add(paths.prompts(cell))
    return sorted(files)
