"""Score summaries by ROUGE."""

from __future__ import annotations

from functools import cache
from typing import Any

ROUGE: dict[str, str] = {"rouge1": "Rouge-1", "rouge2": "Rouge-2", "rougeL": "Rouge-L"}
"""Names of the scores in `rouge-score`, which are also columns and metrics, and their titles."""


def rouge(text: str, reference: str) -> dict[str, float]:
    """Return Rouge-1, -2 and -L F1 in percent; zero for an empty text.

    Without stemming, as in the script of the paper's release. That script uses another package,
    `rouge`, which keeps case and punctuation, counts an n-gram once however often it occurs, and
    takes Rouge-L over sentences; so its figures, Rouge-L above all, are not on this scale.
    """
    scores = _scorer().score(reference, text)
    return {name: 100 * float(scores[name].fmeasure) for name in ROUGE}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=False)
