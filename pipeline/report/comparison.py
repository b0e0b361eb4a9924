"""The paper's numbers beside an experiment's: paired by key, with the reasons why they differ.

A model that says which of the paper's it is (``models.<name>.paper``) is compared number by number.
Another model stands beside Llama 2 7B, and only what does not depend on its scale is compared: the
recovered gap, and whether LESS is better than Baseline+.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..experiment.methods import FULL, label_of, trained_methods
from ..storage.files import whole
from . import paper
from .html import Section, as_html, as_markdown
from .metrics import METRICS, SPEED
from .rows import budgets, gaps, of_grid, texts, with_full, with_gap
from .wide import title

STAND_IN = "llama2_7b"
"""The paper's model that a model of no paper stands beside: it has most numbers."""
CELL = ["task", "policy", "sparsity", "metric"]
METHOD = ["method", "train_sparsity"]
Config = Mapping[str, Any]


def paper_rows(model: str) -> pd.DataFrame:
    """Return the paper's numbers of a model, with the share of the gap each wins back."""
    numbers = paper.numbers().query("model == @model")
    parts = []
    for _, table in numbers.groupby("table", sort=False):
        full = table["method"] == FULL
        known = table[~full & table["task"].notna() & table["policy"].notna()]
        own = gaps(with_full(pd.concat([table[full], known])))
        spread = with_full(pd.concat([table[full], known])).assign(paper_gap=own)
        keys = [*CELL, *METHOD]
        own = spread.loc[spread["method"] != FULL, [*keys, "paper_gap"]]
        parts.append(table.astype(object).merge(own.astype(object), "left", keys))
    return pd.concat(parts, ignore_index=True)


def our_rows(tidy: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return our numbers of a model, as text with intervals, and their recovered gaps."""
    mine = tidy[tidy["model"] == model]
    rows = of_grid(mine, *METRICS)
    full = rows[rows["method"] == FULL]
    others = with_full(rows)
    others = with_gap(others, mine).query("method != @FULL") if len(others) else others
    every = pd.concat([full, others, budgets(mine)], ignore_index=True)
    every["ours"] = texts(every)
    return every.reindex(columns=[*CELL, *METHOD, "value", "low", "high", "n", "ours", "gap"])


def paired(tidy: pd.DataFrame, model: str, beside: str) -> pd.DataFrame:
    """Return every number of the paper's model ``beside``, with ours where it was measured.

    Columns: those of :func:`pipeline.report.paper.numbers`, paper_gap, ours (text), value_ours,
    low, high, n, gap (text).
    """
    theirs, mine = paper_rows(beside), our_rows(tidy, model).astype(object)
    parts = []
    for _, table in theirs.groupby("table", sort=False):
        # What the paper does not tell apart (the setting of Table 8) is not matched.
        keys = [key for key in (*CELL, *METHOD) if table[key].notna().any()]
        beside = table.merge(
            mine.drop_duplicates(keys)[[*keys, "value", "low", "high", "n", "ours", "gap"]],
            "left",
            keys,
            suffixes=("", "_ours"),
        )
        parts.append(beside)
    return pd.concat(parts, ignore_index=True)


def differences(config: Config, beside: str) -> pd.DataFrame:
    """Return settings in which the experiment is not the paper's: key, paper, here."""
    rows = []
    for key, theirs in paper.setup(beside).items():
        at: Any = config
        for part in key.split("."):
            at = at.get(part) if isinstance(at, Mapping) else None
        if at is not None and at != theirs:
            rows.append({"setting": key, "paper": theirs, "here": at})
    return pd.DataFrame(rows, columns=["setting", "paper", "here"])


def missing(key: Mapping[str, Any], config: Config) -> str:
    """Return the first thing the configuration lacks for a number of the paper."""
    grid, task = config["grid"], config["tasks"].get(key["task"])
    if key["metric"] in SPEED:
        return "no such row of `latency`" if config.get("latency") else "needs `latency`"
    trained = grid["train_sparsities"]
    if isinstance(trained, Mapping):
        trained = trained.get(key["policy"], [])
    checks = [
        (key["task"], config["tasks"], f"no task `{key['task']}`"),
        (key["policy"], grid["policies"], f"no `{key['policy']}` in `grid.policies`"),
        (key["policy"], (task or {}).get("policies"), f"`{key['task']}` leaves out this policy"),
        (key["sparsity"], grid["test_sparsities"], f"no {key['sparsity']} in `test_sparsities`"),
        (key["sparsity"], (task or {}).get("sparsities"), f"`{key['task']}` leaves it out"),
        (key["method"], [FULL, *grid["methods"]], f"no `{key['method']}` in `grid.methods`"),
        (
            key["train_sparsity"],
            trained,
            f"no {key['train_sparsity']} in `train_sparsities`",
        ),
    ]
    return next(
        (
            said
            for value, there, said in checks
            if pd.notna(value) and there is not None and value not in there
        ),
        "not measured",
    )


PROTOCOLS = {
    "perplexity": "one window a document",  # the paper: the whole document, window after window
    "summaries": "another ROUGE package",  # see docs/how_it_works.md
}
"""How a kind of task is measured otherwise than in the paper."""


def reasons(row: Mapping[str, Any], same: bool, changed: bool, config: Config) -> str:
    """Return why ours is not the paper's number, as far as rules can tell."""
    task = config["tasks"].get(row["task"], {})
    kind, words = task.get("kind"), task.get("max_words")
    wanted = paper.documents(row["task"]) if isinstance(row["task"], str) else None
    said = [
        (not same, "other model: compare gaps"),
        (changed, "other settings"),
        (kind in PROTOCOLS, PROTOCOLS.get(kind, "")),
        (words is not None, f"documents cut to {words} words"),
        (wanted is not None and row["n"] < (wanted or 0), f"{row['n']:g} of {wanted} documents"),
        (same and row["low"] <= row["value"] <= row["high"], "within the interval"),
    ]
    return ", ".join(text for holds, text in said if holds)


def compared(both: pd.DataFrame, same: bool, changed: bool, config: Config) -> pd.DataFrame:
    """Return what was measured, for people. Of another model only metrics that have a gap."""
    rows = both[both["ours"].notna()]
    if not same:
        rows = rows[[METRICS[metric].gap for metric in rows["metric"]]]
    table = pd.DataFrame(
        {
            "table": rows["table"].str.removeprefix("table"),
            "task": rows["task"],
            "policy": title(rows["policy"]),
            "sparsity": title(rows["sparsity"]),
            "metric": title(rows["metric"]),
            "method": [label_of(*key) for key in rows[METHOD].itertuples(index=False)],
            "paper": rows["printed"],
            "ours": rows["ours"],
            "n": rows["n"].map("{:g}".format, na_action="ignore"),
            "difference": [difference(row) if same else "" for row in rows.to_dict("records")],
            "paper gap": rows["paper_gap"].map("{:z.2f}".format, na_action="ignore"),
            "our gap": rows["gap"],
            "why": [reasons(row, same, changed, config) for row in rows.to_dict("records")],
        },
        dtype=object,
    )
    return table.fillna("")


def difference(row: Mapping[str, Any]) -> str:
    """Return ours less the paper's, in the printed unit."""
    metric = METRICS[row["metric"]]
    difference = (row["value_ours"] - row["value"]) * metric.scale
    return f"{difference:+.{metric.digits}f}" if pd.notna(difference) else ""


def orderings(both: pd.DataFrame, tidy: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return where the paper has LESS and Baseline+ in one cell: who is better there, and here.

    Here it is decided where the interval of paired differences on the same documents excludes 0.
    """
    rows = []
    for (table, *cell), block in both.groupby(["table", *CELL], sort=False):
        metric = METRICS[cell[-1]]
        plus = block[block["method"] == "baseline_plus"]
        trained = block[block["method"].isin(trained_methods()) & block["ours"].notna()]
        if not metric.gap or plus.empty or plus["ours"].isna().all():
            continue
        for row in trained.to_dict("records"):
            sign = -1 if metric.lower else 1
            theirs = sign * (row["value"] - plus["value"].iloc[0])
            ours = sign * (row["value_ours"] - plus["value_ours"].iloc[0])
            rows.append(
                {
                    "table": table.removeprefix("table"),
                    **dict(zip(CELL, cell, strict=True)),
                    "method": label_of(row["method"], row["train_sparsity"]),
                    "paper": verdict(theirs),
                    "ours": verdict(ours),
                    "decided": decided(tidy, model, cell, row["train_sparsity"]),
                }
            )
    shown = pd.DataFrame(rows, columns=["table", *CELL, "method", "paper", "ours", "decided"])
    shown = shown.drop_duplicates([*CELL, "method"])  # Table 7 repeats what Tables 2 and 3 have
    return shown.assign(**{name: title(shown[name]) for name in ("policy", "sparsity", "metric")})


def verdict(gain: float) -> str:
    """Return of LESS over Baseline+."""
    return "better" if gain > 0 else "worse" if gain < 0 else "equal"


def decided(tidy: pd.DataFrame, model: str, cell: list[Any], train_sparsity: float) -> str:
    """Tell whether the paired difference to Baseline+ has an interval without 0.

    Empty if unmeasured.
    """
    task, policy, sparsity, metric = cell
    what = "nats" if metric == "word_perplexity" else metric
    rows = of_grid(tidy, f"{what}_over_baseline_plus")
    rows = rows[
        (rows["model"] == model) & (rows["task"] == task) & (rows["policy"] == policy)
        & (rows["sparsity"] == sparsity) & (rows["train_sparsity"] == train_sparsity)
    ]  # fmt: skip
    if rows.empty:
        return ""
    low, high = rows[["low", "high"]].iloc[0]
    return "yes" if low > 0 or high < 0 else "no"


def unmeasured(both: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Return the paper's numbers without one of ours, counted by reason."""
    rows = both[both["ours"].isna()]
    why = [missing(row, config) for row in rows.to_dict("records")]
    counted = rows.assign(why=why, table=rows["table"].str.removeprefix("table"))
    counted = counted.fillna({"task": ""}).groupby(["table", "task", "why"], sort=False).size()
    return counted.rename("numbers").reset_index()


def summary(table: pd.DataFrame, order: pd.DataFrame) -> Iterator[str]:
    """Yield the comparison of one model in sentences."""
    yield f"{len(table)} numbers of the paper have one of ours beside them."
    if len(order):
        ours, theirs = order["ours"] == "better", order["paper"] == "better"
        sure = ours & (order["decided"] == "yes")
        yield (
            f"LESS is better than Baseline+ in {theirs.sum()} of {len(order)} of the paper's "
            f"comparisons and in {ours.sum()} of ours, {sure.sum()} of them with an interval of "
            f"paired differences that excludes 0; both agree in {(ours == theirs).sum()}."
        )


TITLE = "The paper's numbers and ours"
NOTES = (
    "Paper: Dong et al., Get More with LESS, ICML 2024. Ours: value and 95 % interval (bootstrap "
    "over n documents). A gap is the share of the baseline's loss that a method wins back: 0 the "
    "sparse policy alone, 1 the full cache; it is left out where the baseline loses nothing.",
    "Reasons are given by rule, not by judgement: another model, other settings (listed first for "
    "each model), another protocol, fewer documents than the paper. It is also said where the "
    "paper's number is within our interval.",
)


def sections(tidy: pd.DataFrame, config: Config, model: str) -> list[Section]:
    """Return what there is to say about one model."""
    mine = config["models"][model]
    same, beside = mine["paper"] is not None, mine["paper"] or STAND_IN
    name = paper.models()[beside]["title"]
    settings = differences({**config, "context": mine["context"]}, beside)
    both = paired(tidy, model, beside)
    table = compared(both, same, bool(len(settings)), config)
    order = orderings(both, tidy, model)
    relation = "is" if same else "is none of the paper's models; it stands beside"
    remarks = [f"{model} {relation} {name}.", *summary(table, order)]
    remarks.append("Settings that are not the paper's:" if len(settings) else "Settings as there.")
    return [
        Section(f"{model} and {name}", settings, remarks),
        Section(f"{model}: every number there is", table),
        Section(f"{model}: LESS against Baseline+", order),
        Section(f"{model}: numbers of the paper without ours", unmeasured(both, config)),
    ]


def to_markdown(shown: list[Section]) -> str:
    """Return sentences as paragraphs, tables under their headings."""
    parts = [f"# {TITLE}", *NOTES]
    for heading, table, lines in shown:
        parts += [f"## {heading}", *lines]
        if len(table):
            parts.append(as_markdown(table).rstrip())
        elif not lines:
            parts.append("None.")
    return "\n\n".join(parts) + "\n"


def forms(tidy: pd.DataFrame, config: Config) -> dict[str, str]:
    """Return the comparison as Markdown and as a page, by suffix."""
    shown = [part for model in config["models"] for part in sections(tidy, config, model)]
    return {"md": to_markdown(shown), "html": as_html(TITLE, shown, NOTES)}


def write(tidy: pd.DataFrame, config: Mapping[str, Any], out: Path) -> None:
    """Write the comparison as Markdown to ``out``, and as a page beside it."""
    for suffix, text in forms(tidy, config).items():
        with whole(out.with_suffix(f".{suffix}")) as partial:
            partial.write_text(text, encoding="utf-8")
