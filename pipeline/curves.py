"""Loss curves of trainings, gathered into one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.files import load_table

COLUMNS = [
    "layer", "sparse_loss", "epoch", "train_loss", "validation_loss", "learning_rate", "model",
    "policy", "train_sparsity", "fault", "became",
]  # fmt: skip


def load_curves(paths: Sequence[Path]) -> pd.DataFrame:
    """A row an epoch and layer of every training; none where nothing is trained."""
    if not paths:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat([load_table(path) for path in paths], ignore_index=True)
