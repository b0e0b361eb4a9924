"""How policies, methods and metrics are written in tables and figures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..text.rouge import ROUGE


@dataclass(frozen=True)
class Metric:
    """How a metric of the tidy table is shown.

    Attributes:
        title: as printed, with its unit.
        digits: after the point.
        scale: what a value is multiplied by to have the printed unit.
        lower: whether lower is better.
        missing: what stands where no value could be measured.
        gap: whether tables say what share of the baseline's loss a method wins back.
    """

    title: str
    digits: int = 2
    scale: float = 1.0
    lower: bool = False
    gap: bool = False
    missing: str = "undefined"


STEP_PARTS = {
    "decoding": "decoding",
    "eviction": "eviction",
    "kernels": "kernels",
    "attention_synthesis": "attention synthesis",
    "low_rank_cache_update": "low-rank cache update",
    "total": "total",
}
"""Parts of a decode step (Table 8 of the paper) and how they are written."""

SCORES: dict[str, Metric] = {
    "acc": Metric("accuracy (%)", scale=100, gap=True),
    "acc_norm": Metric("accuracy per character (%)", scale=100, gap=True),
    "acc_bytes": Metric("accuracy per byte (%)", scale=100, gap=True),
    "exact_match": Metric("exact match (%)", scale=100, gap=True),
    "r@1": Metric("R@1 (%)", scale=100, gap=True),
    "r@2": Metric("R@2 (%)", scale=100, gap=True),
    "mrr": Metric("MRR (%)", scale=100, gap=True),
}
"""Metrics of lm-evaluation-harness that are tabulated."""

GENERATE = "generate_"
"""What the metrics of plain `generate` begin with, beside those of the decode engine."""

WHOLE: dict[str, Metric] = {
    "latency_s": Metric("latency (s)", 1, lower=True, missing="OOM"),
    "throughput": Metric("throughput (tokens/s)", 1, missing="OOM"),
    "peak_memory_bytes": Metric("peak memory (GiB)", 2, 2.0**-30, lower=True, missing="OOM"),
}
"""Metrics of a whole continuation; no value where memory did not suffice."""

SPEED: dict[str, Metric] = {
    **WHOLE,
    **{
        GENERATE + name: replace(metric, title=f"{metric.title} by generate")
        for name, metric in WHOLE.items()
    },
    **{f"step_ms.{part}": Metric(f"{name} (ms)", lower=True) for part, name in STEP_PARTS.items()},
}
"""Metrics of the latency study."""

METRICS: dict[str, Metric] = {
    "budget": Metric("tokens", 0),
    "token_perplexity": Metric("perplexity per token", lower=True),
    "word_perplexity": Metric("word perplexity", lower=True, gap=True),
    "recovered_gap": Metric("recovered gap", 3),
    "nats_over_baseline_plus": Metric("nats per token over Baseline+", 4, lower=True),
    **SCORES,
    **{
        f"{name}_over_baseline_plus": Metric(f"{metric.title} over Baseline+", scale=metric.scale)
        for name, metric in SCORES.items()
    },
    **{name: Metric(title, gap=True) for name, title in ROUGE.items()},
    "rougeL_over_baseline_plus": Metric("Rouge-L over Baseline+"),
    "hellinger": Metric("Hellinger distance", 4, lower=True),
    **SPEED,
}
"""Metrics that tables show, in the order they show them."""

PRIMARY = ("word_perplexity", "rougeL", *SCORES)
"""What a task's recovered gap in the tidy table is the gap of: the first of these it measures."""
