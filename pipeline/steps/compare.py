"""Set an experiment's numbers beside the paper's, as Markdown and as a page to sort and filter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from pipeline import paper
from pipeline.comparison import (
    STAND_IN,
    Config,
    compared,
    differences,
    orderings,
    paired,
    summary,
    unmeasured,
)
from pipeline.files import whole
from pipeline.page import Section, as_html, as_markdown
from pipeline.views import load_tidy

TITLE = "The paper's numbers and ours"
NOTES = (
    "Paper: Dong et al., Get More with LESS, ICML 2024. Ours: value and 95 % interval (bootstrap "
    "over n documents). A gap is the share of the baseline's loss that a method wins back: 0 the "
    "sparse policy alone, 1 the full cache; it is left out where the baseline loses nothing.",
    "Reasons are given by rule, not by judgement: another model, other settings (listed first for "
    "each model), another protocol, fewer documents than the paper. It is also said where the "
    "paper's number is within our interval.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less compare``."""
    parser.add_argument("--tidy", type=Path, required=True)
    parser.add_argument(
        "--config", type=json.loads, required=True,
        help="models, train, grid and tasks of the completed configuration, as JSON",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="Markdown; a page lies beside it")


def sections(tidy: pd.DataFrame, config: Config, model: str) -> list[Section]:
    """What there is to say about one model."""
    mine = config["models"][model]
    same, beside = mine["paper"] is not None, mine["paper"] or STAND_IN
    name = paper.models()[beside]["title"]
    settings = differences({**config, "context": mine["context"]}, beside)
    found = paired(tidy, model, beside)
    table = compared(found, same, bool(len(settings)), config)
    order = orderings(found, tidy, model)
    relation = "is" if same else "is none of the paper's models; it stands beside"
    remarks = [f"{model} {relation} {name}.", *summary(table, order)]
    remarks.append("Settings that are not the paper's:" if len(settings) else "Settings as there.")
    return [
        Section(f"{model} and {name}", settings, remarks),
        Section(f"{model}: every number there is", table),
        Section(f"{model}: LESS against Baseline+", order),
        Section(f"{model}: numbers of the paper without ours", unmeasured(found, config)),
    ]


def to_markdown(found: list[Section]) -> str:
    """Sentences as paragraphs, tables under their headings."""
    parts = [f"# {TITLE}", *NOTES]
    for heading, table, lines in found:
        parts += [f"## {heading}", *lines]
        if len(table):
            parts.append(as_markdown(table).rstrip())
        elif not lines:
            parts.append("None.")
    return "\n\n".join(parts) + "\n"


def forms(tidy: pd.DataFrame, config: Config) -> dict[str, str]:
    """The comparison as Markdown and as a page, by suffix."""
    found = [part for model in config["models"] for part in sections(tidy, config, model)]
    return {"md": to_markdown(found), "html": as_html(TITLE, found, NOTES)}


def run(args: argparse.Namespace) -> None:
    """Write ``paper_vs_ours.md`` and the page of the same name."""
    for suffix, text in forms(load_tidy(args.tidy), args.config).items():
        with whole(args.out.with_suffix(f".{suffix}")) as partial:
            partial.write_text(text, encoding="utf-8")
