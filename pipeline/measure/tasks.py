"""Tasks of lm-evaluation-harness (the `lm_eval` library): which documents, and what each scores.

A task is one that the library knows or a file of ``resources/tasks``, written as the library's own
are. Prompts, demonstrations, windows of long documents, counts of words and scores are the
library's; only the rows may come from a data set of the experiment, in place of its download.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import datasets
from jinja2 import UndefinedError
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from .. import resources
from ..errors import ConfigError, DataError
from ..text.documents import Row, load_rows

OWN_TASKS = Path(str(files(resources))) / "tasks"
LIBRARY_TASKS = Path(str(files("lm_eval.tasks")))
ROLLING = "loglikelihood_rolling"
MEASURED = (ROLLING, "loglikelihood", "multiple_choice")
"""Output types that need whole sequences only; the other one generates text."""
DEMONSTRATIONS_SEED = 1234
"""The library's own default: a task has the same demonstrations as from its command line."""


def ranks(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Return MuTual's recall at 1 and 2 and reciprocal rank of the right answer among four.

    The library's (0.4.13) takes the largest of all numbers in ``results``, which are pairs of a
    log-likelihood and a flag: r@1 says there whether the right answer is B. Its ranks are sound.
    """
    likelihoods = [likelihood for likelihood, _ in results]
    rank = sorted(likelihoods, reverse=True).index(likelihoods["ABCD".index(doc["answers"])])
    return {"r@1": float(rank == 0), "r@2": float(rank <= 1), "mrr": 1 / (rank + 1)}


CORRECTED: dict[str, dict[str, Any]] = {
    "mutual": {"process_results": ranks},
    "mutual_plus": {"process_results": ranks},
}
"""Fields of the library's tasks that are replaced, and why in what replaces them."""


@dataclass(frozen=True)
class Document:
    """A document of a task, and what a model is asked about it."""

    name: str
    """Its place among the task's documents, from 0."""
    doc: Mapping[str, Any]
    requests: list[Instance]


def load_task(
    name: str, shots: int = 0, rows: list[Row] | None = None, pool: list[Row] | None = None
) -> ConfigurableTask:
    """Return a task with its data.

    Args:
        name: of one task; groups of tasks are not measured.
        shots: demonstrations in each prompt.
        rows: stand for the split that is measured; without them, the library reads the hub.
        pool: stand for the split that demonstrations are drawn from.

    Raises:
        ConfigError: no such task, one that generates text, or demonstrations without their split.
        DataError: the hub cannot be read, or rows lack what the task reads.
    """
    silence()
    manager = manager_of(name)
    config = manager.task_index[name].cfg
    if config.get("output_type") not in MEASURED:
        raise ConfigError(
            f"the task '{name}' generates text; tasks of lm-evaluation-harness are teacher-forced "
            "here, so use one that compares log-likelihoods, or a task of the kind `summaries`."
        )
    fields: dict[str, Any] = {"task": name, "num_fewshot": shots, **CORRECTED.get(name, {})}
    if rows is not None:
        fields["custom_dataset"] = _source(name, config, shots, rows, pool)
    with _readable(name):
        # an inline group is how the library lets a known task be changed
        task = manager.load({"group": "one", "task": [fields]})["tasks"][name]
    return task


def documents(task: ConfigurableTask, limit: int | None = None) -> list[Document]:
    """Return the first ``limit`` documents of a task (all, without a limit), with their requests.

    Raises:
        DataError: as :func:`load_task`, or fewer demonstrations than are asked for.
    """
    name = task.config.task
    task.set_fewshot_seed(DEMONSTRATIONS_SEED)
    with _readable(name):
        task.build_all_requests(limit=limit)
    by_document = groupby(task.instances, key=lambda request: request.doc_id)
    asked = {str(index): list(requests) for index, requests in by_document}
    return [Document(name, requests[0].doc, requests) for name, requests in asked.items()]


def mean_metrics(task: ConfigurableTask) -> list[str]:
    """Return the task's metrics that are means over documents; only these have a value for each.

    Raises:
        ConfigError: it has none.
    """
    mean = get_aggregation("mean")
    metrics = [metric for metric, how in task.aggregation().items() if how is mean]
    if not metrics:
        known = ", ".join(task.aggregation())
        raise ConfigError(f"no metric of '{task.config.task}' is a mean over documents: {known}.")
    return metrics


def first_words(text: str, count: int) -> str:
    """Return the text up to the end of its ``count``-th word."""
    words = list(islice(re.finditer(r"\S+", text), count))
    return text[: words[-1].end()] if words else text


def manager_of(name: str) -> TaskManager:
    """Return an index that has the task ``name``; ours go before the library's.

    The library reads every one of its fourteen thousand files for an index of them all; it takes a
    twentieth of the time to look for those that state the name.
    """
    stated = re.compile(rf"^task:\s*(['\"]?){re.escape(name)}\1\s*(#.*)?$".encode(), re.MULTILINE)
    for tasks in (OWN_TASKS, LIBRARY_TASKS):
        files = (path for path in sorted(tasks.rglob("*.yaml")) if stated.search(path.read_bytes()))
        if folders := list(dict.fromkeys(path.parent for path in files)):
            break
    manager = TaskManager(include_path=folders or None, include_defaults=not folders)
    if name not in manager.all_subtasks:
        known = [*manager.all_subtasks, *(path.stem for path in OWN_TASKS.glob("*.yaml"))]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise ConfigError(
            f"neither lm-evaluation-harness nor {OWN_TASKS} has a task '{name}'{hint}"
        )
    return manager


def _source(
    name: str, config: Mapping[str, Any], shots: int, rows: list[Row], pool: list[Row] | None
) -> Any:
    """Return what stands for the download of a task: rows under the names of the task's splits."""
    measured = config.get("test_split") or config.get("validation_split")
    shown = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
    shown = shown or config.get("training_split") or config.get("validation_split") or measured
    if pool is not None and shown == measured:
        raise ConfigError(
            f"the task '{name}' draws demonstrations from the split it measures ({measured}); "
            "leave fewshot_dataset out."
        )
    if pool is None and shots and shown != measured:
        raise ConfigError(
            f"the task '{name}' draws demonstrations from its split '{shown}'; "
            "name the data set that has it as fewshot_dataset."
        )
    splits = {shown: rows if pool is None else pool, measured: rows}
    tables = {split: datasets.Dataset.from_list(part) for split, part in splits.items()}
    return lambda **_: tables


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise what reading a task's data raises as errors for people."""
    try:
        yield
    except (KeyError, UndefinedError) as error:
        raise DataError(
            f"the rows of the task '{name}' lack a field that it reads: {error}."
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot read the data of the task '{name}': {str(error).splitlines()[0].rstrip('.')}. "
            "Without the hub, give the task a `dataset` with a copy as JSON lines."
        ) from error


def silence() -> None:
    """Let only errors of the library through, whose warnings say what is meant here."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()


def rows_of(spec: dict[str, Any] | None, file: Path | None) -> list[Row] | None:
    """Return the rows of a data set, if one is given."""
    return None if spec is None else load_rows(spec, file)


def cut(rows: list[Row] | None, field: str, count: int) -> list[Row]:
    """Return rows with the text in ``field`` cut to ``count`` words.

    Raises:
        ConfigError: no rows were given, so there is nothing to cut.
        DataError: rows without such a text.
    """
    if rows is None:
        raise ConfigError("--max-words cuts the texts of a --dataset; give one.")
    for row in rows:
        if not isinstance(row.get(field), str):
            raise DataError(f"there is no text to cut in '{field}'; fields: {', '.join(row)}.")
    return [row | {field: first_words(row[field], count)} for row in rows]


@dataclass(frozen=True)
class Question:
    """What a task asks, of which text.

    Attributes:
        task: name, of the library or of ``resources/tasks``.
        dataset: the data set that is measured, as in a configuration; None: the library's own.
        dataset_file: that it is read from.
        shots: demonstrations in each prompt; ``shots_from`` and ``shots_file`` are their data set.
        limit: the first documents; None: all.
        max_words: that the data set's texts are cut to.
    """

    task: str
    dataset: dict[str, Any] | None = None
    dataset_file: Path | None = None
    shots: int = 0
    shots_from: dict[str, Any] | None = None
    shots_file: Path | None = None
    limit: int | None = None
    max_words: int | None = None

    def load(self) -> tuple[ConfigurableTask, list[Document]]:
        """Return the task and its documents.

        Raises:
            ConfigError: as :func:`load_task`, or the task has nothing that could be written.
            DataError: as :func:`documents`.
        """
        rows = rows_of(self.dataset, self.dataset_file)
        if self.max_words is not None:
            rows = cut(rows, (self.dataset or {}).get("field", "text"), self.max_words)
        pool = rows_of(self.shots_from, self.shots_file)
        task = load_task(self.task, self.shots, rows, pool)
        if self.max_words is not None and task.OUTPUT_TYPE != ROLLING:
            raise ConfigError(f"--max-words is for tasks of whole texts; '{self.task}' is none.")
        if task.OUTPUT_TYPE != ROLLING:
            mean_metrics(task)  # refuses a task that has nothing to write before it is run
        elif "word_perplexity" not in task.aggregation():
            raise ConfigError(f"the task '{self.task}' has no word_perplexity in its metric_list.")
        return task, documents(task, self.limit)
