"""The numbers printed in the paper, as rows of a tidy table, to stand beside our own.

The source is ``pipeline/resources/paper.yaml``: Dong et al., "Get More with LESS", ICML 2024,
arXiv:2402.09398.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..errors import unknown
from ..experiment.methods import FULL
from .metrics import METRICS

PAPER = Path(__file__).parents[1] / "resources" / "paper.yaml"
KEYS = ["model", "task", "policy", "sparsity", "method", "train_sparsity", "metric"]
"""What names one number of a table; None where it does not apply, as in the tidy table."""
COLUMNS = ["table", *KEYS, "value", "printed"]


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    return content


def models() -> dict[str, dict[str, Any]]:
    """Return the paper's models by name: ``title``, and ``setup`` as of :func:`setup`."""
    own: dict[str, dict[str, Any]] = _content()["models"]
    return own


def setup(model: str) -> dict[str, Any]:
    """Return the settings behind a model's numbers, by key of a configuration.

    Raises:
        ConfigError: not a model of the paper.
    """
    if model not in models():
        raise unknown("model of the paper", model, models())
    settings: dict[str, Any] = models()[model]["setup"] | _content()["setup"]
    return settings


def documents(task: str) -> int | None:
    """Return documents that the paper measured a task on, or None where it does not say."""
    count: int | None = _content()["documents"].get(task)
    return count


@cache
def numbers() -> pd.DataFrame:
    """Return every number: table, :data:`KEYS`, value in the tidy table's unit, and it as printed.

    The full cache's numbers have neither policy nor sparsity and stand once a table. ``value`` is
    nan where the paper prints no number ("OOM"); what does not apply has no row.
    """
    rows = []
    for table, blocks in _content()["tables"].items():
        for block in blocks:
            for name, values in block["rows"].items():
                method, _, trained = name.partition("@")
                for column, printed in zip(block["columns"], values, strict=True):
                    if printed is None:
                        continue
                    key = block["where"] | column | {"method": method}
                    key["train_sparsity"] = float(trained) if trained else None
                    if method == FULL:
                        key["policy"] = key["sparsity"] = None
                    value = float("nan" if printed == "OOM" else printed)
                    value /= METRICS[key["metric"]].scale
                    rows.append(key | {"table": table, "value": value, "printed": str(printed)})
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table[["sparsity", "train_sparsity"]] = table[["sparsity", "train_sparsity"]].astype(float)
    return table.drop_duplicates(["table", *KEYS], ignore_index=True)


def printed(
    table: str,
    model: str,
    task: str | None,
    policy: str | None,
    sparsity: float | None,
    method: str,
    metric: str,
    train_sparsity: float | None = None,
) -> str | None:
    """Return one number as printed, or None where the table does not have it."""
    wanted = dict(
        zip(
            ["table", *KEYS],
            (table, model, task, policy, sparsity, method, train_sparsity, metric),
            strict=True,
        )
    )
    rows = numbers()
    for key, value in wanted.items():
        rows = rows[rows[key].isna() if value is None else rows[key] == value]
    return None if rows.empty else str(rows["printed"].iloc[0])
