"""Measured tables made up, and a step of `report` run on them: what its tests share."""

import argparse

import pandas as pd

from pipeline.report.tidy import COLUMNS
from pipeline.storage.files import save_table

METHODS = [("baseline", None), ("baseline_plus", None), ("less", 0.05), ("less", 0.1)]
SPARSITIES = [0.1, 0.02, 0.05]
METRICS = ["token_perplexity", "word_perplexity", "recovered_gap", "nats_over_baseline_plus"]


def tidy_frame(models=("m_1",), methods=METHODS, fidelity=True):
    rows = []
    for model in models:
        for metric in METRICS[:2]:
            rows.append({"model": model, "task": "t", "method": "full", "metric": metric,
                         "value": 10.0, "low": 9.0, "high": 11.0, "n": 7})  # fmt: skip
        for policy in ("lambda", "h2o"):
            for sparsity in SPARSITIES:
                for place, (method, trained) in enumerate(methods):
                    key = {"model": model, "policy": policy, "sparsity": sparsity,
                           "method": method, "train_sparsity": trained}  # fmt: skip
                    for metric in METRICS:
                        value = 20 + 100 * sparsity + place
                        found = {"value": value, "low": value - 1, "high": value + 1, "n": 7}
                        rows.append(key | found | {"task": "t", "metric": metric})
                    for layer in range(2 if fidelity else 0):
                        value = 0.1 * (layer + 1)
                        rows.append(key | {"task": "fidelity", "metric": "hellinger",
                                           "layer": layer, "value": value, "low": value,
                                           "high": value, "n": 2})  # fmt: skip
    run = {"experiment": "e", "config": "c", "commit": "d", "seed": 0, "study": "grid"}
    frame = pd.DataFrame(rows).assign(budget=4, **run)
    return frame.reindex(columns=COLUMNS)


def curves_frame(models=("m_1",)):
    return pd.DataFrame(
        [
            {"model": model, "policy": policy, "train_sparsity": 0.1, "layer": layer,
             "epoch": epoch, "train_loss": 1.0, "sparse_loss": 2.0, "learning_rate": 0.1,
             "fault": None, "became": None,
             "validation_loss": 2.0 - 0.4 * epoch * (layer + 1)}
            for model in models for policy in ("h2o", "lambda")
            for layer in range(2) for epoch in range(3)
        ]
    )  # fmt: skip


def run_step(step, folder, tidy, curves, *more):
    """The step as the command line runs it."""
    parser = argparse.ArgumentParser()
    step.add_arguments(parser)
    save_table(folder / "tidy.parquet", tidy)
    words = ["--tidy", str(folder / "tidy.parquet"), "--out", str(folder / "out"), "--curves"]
    if curves is not None:
        save_table(folder / "curves.parquet", curves)
        words.append(str(folder / "curves.parquet"))
    step.run(parser.parse_args([*words, *more]))
    return folder / "out"


def more(**columns):
    """Rows of the tidy table: columns as lists, or one value for all."""
    run = {"experiment": "e", "config": "c", "commit": "d", "seed": 0, "study": "grid",
           "model": "m_1", "budget": 4}  # fmt: skip
    frame = pd.DataFrame({**run, **columns}).reindex(columns=COLUMNS)
    if "low" not in columns:
        frame[["low", "high"]] = float("nan")
    return frame


LLAMA = {"m_1": {"context": 4096, "paper": "llama2_7b"}}
ROUGES = {"full": 30.0, "baseline": 20.0, "baseline_plus": 21.0, "less": 25.0}
SCORES = {"full": 0.8, "baseline": 0.6, "baseline_plus": 0.65, "less": 0.7}


def scored(task, metric, values=SCORES, policy="lambda", sparsity=0.05, n=5):
    """A row a method; the full cache has no policy."""
    return pd.concat(
        [
            more(task=[task], metric=metric, value=value, low=value - 0.1, high=value + 0.1, n=n,
                 method=method, policy=None if method == "full" else policy,
                 sparsity=None if method == "full" else sparsity,
                 train_sparsity=0.05 if method == "less" else None)
            for method, value in values.items()
        ],
        ignore_index=True,
    )  # fmt: skip
