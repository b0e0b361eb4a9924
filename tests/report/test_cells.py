"""Measured files as cells, all of one run."""

from math import log

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import DataError
from pipeline.report import cells


def cell(methods, policy="h2o", sparsity=0.1, documents=("a", "b")):
    """Measurements: method name, train sparsity and losses of each document (2 tokens, 1 word)."""
    return pd.DataFrame(
        [
            {
                "method": method, "train_sparsity": trained, "budget": 4, "document": document,
                "tokens": 2, "words": 1, "nll": nll, "policy": policy, "model": "m", "task": "t",
                "sparsity": sparsity,
            }
            for method, trained, losses in methods
            for document, nll in zip(documents, losses, strict=True)
        ]
    )  # fmt: skip


FULL = cell([("full", None, [2 * log(2)] * 2)], policy=None, sparsity=None)

CELL = [
    ("baseline", None, [2 * log(4)] * 2),
    ("baseline_plus", None, [2 * log(3.5)] * 2),
    ("less", 0.05, [2 * log(3)] * 2),
    ("less", 0.1, [2 * log(2.5)] * 2),
]


def test_studies_are_cells_of_their_own():
    """The full cache is the study's, or the grid's where the study has none."""
    grid = list(cells.parts(pd.concat([FULL]), "perplexity"))
    assert [(part.study, part.setting) for part in grid] == [("grid", None)]
    study = pd.concat([cell(CELL[:1]).assign(study="width", setting=n) for n in (8, 16)])
    own = cell([("full", None, [1.0, 1.0])], policy=None).assign(study="width", setting=16)
    both = [*grid, *cells.parts(study, "perplexity"), *cells.parts(own, "perplexity")]
    assert [(part.study, part.setting) for part in both[1:]] == [
        ("width", 8.0), ("width", 16.0), ("width", 16.0),
    ]  # fmt: skip
    reference = cells.full_caches(both)
    assert reference(both[1])["nll"].tolist() == FULL["nll"].tolist()
    assert reference(both[2])["nll"].tolist() == [1.0, 1.0]


def part(study="grid", setting=None, kind="perplexity", **changed):
    key = {"model": "m", "task": "t", "policy": "h2o", "sparsity": 0.1, "measured_by": "code"}
    key |= changed
    table = pd.DataFrame({name: [value] for name, value in key.items()})
    return cells.Part(kind, study, setting, table)


LABELS = {"model": ["m"], "task": ["t"], "policy": ["h2o"], "measured_by": ["code"]}


def test_cells_of_one_run_are_taken():
    full = part(policy=None, sparsity=np.nan)
    other = [part(kind="fidelity"), part(sparsity=0.2), full]
    studies = [part("kernel_size", 4), part("kernel_size", 16), part("scores", 1)]
    cells.of_one_run([part(), *other, *studies], LABELS)
    cells.of_one_run([part(model="anything")], {})


@pytest.mark.parametrize("column", LABELS)
def test_cells_of_another_run_are_refused(column):
    with pytest.raises(DataError, match=f"another run: the experiment has no {column} 'other'"):
        cells.of_one_run([part(), part(**{column: "other"})], LABELS)


def test_cells_that_do_not_say_what_measured_them_are_refused():
    old = part()
    old.table.drop(columns="measured_by", inplace=True)
    with pytest.raises(DataError, match="no measured_by 'of an earlier version'"):
        cells.of_one_run([old], LABELS)


@pytest.mark.parametrize(
    "cell", [part(), part(policy=None, sparsity=np.nan), part("kernel_size", 4)]
)
def test_a_cell_measured_twice_is_refused(cell):
    with pytest.raises(DataError, match="given twice; give the files of one run only"):
        cells.of_one_run([cell, cell], LABELS)
