"""The tables and figures there are, and what each shows: plain data for the workflow and report."""

from __future__ import annotations

TABLES: dict[str, str] = {
    "perplexity": "Perplexity per token",
    "word_perplexity": "Perplexity per word",
    "recovered_gap": "Recovered gap",
    "paired_difference": "Difference to Baseline+ on the same documents",
    "summaries": "ROUGE of summaries",
    "scores": "Scores of lm-evaluation-harness tasks",
    "hellinger": "Hellinger distance to true attention",
    "training": "Training losses",
}

FIGURES: dict[str, str] = {
    "recovered_gap": "Recovered gap by policy and sparsity",
    "perplexity": "Perplexity against sparsity",
    "hellinger": "Hellinger distance by layer",
    "loss_curves": "Loss curves of the kernels",
}
