"""The tables and figures there are, and what each shows: plain data for the workflow and report.

Numbered ones are the paper's, by its numbers. Its figures 4 and 5 are diagrams of the method, and
2, 12 and 13 are generated texts, which the page of examples shows.
"""

from __future__ import annotations

from typing import NamedTuple

INTUITION = "1-2 Introduction and intuition"
SETTING = "4 Budgets"
LANGUAGE = "4.1 Language modeling and classification"
SUMMARIES = "4.2 Summarization"
LATENCY = "4.3 Latency and throughput"
ANALYSIS = "4.4 Analysis and ablations"
ATTENTION = "A Attention matrices"
POLICIES = "B Policies compared"
BREAKDOWN = "C Latency breakdown"
TEXTS = "D Generated texts"
TRAINING = "Training of the kernels"
COMPARISON = "0 Paper and ours compared"
PROVENANCE = "Provenance"


class Shown(NamedTuple):
    """A table or figure: its title, the paper's section it belongs to, and what it needs.

    ``needs`` names the keys of a configuration that measure it.
    """

    title: str
    section: str
    needs: str

    @property
    def missing(self) -> str:
        """What stands in its place where it was not measured."""
        return f"Not measured in this experiment; its configuration would need {self.needs}."


WORDS = "tasks with a word perplexity"
METHODS = "`grid.methods` with `baseline` and more"

TABLES: dict[str, Shown] = {
    "table1": Shown("Table 1: Tokens that a cache holds", SETTING, "`grid.methods`"),
    "table2": Shown(
        "Table 2: Word perplexity under H2O", LANGUAGE, f"{WORDS} and `h2o` in `grid.policies`"
    ),
    "table3": Shown(
        "Table 3: Λ-masking at 5 %",
        LANGUAGE,
        "`lambda` in `grid.policies`, 0.05 in `grid.test_sparsities`, and tasks that give a word "
        "perplexity, an accuracy or an R@1",
    ),
    "table4": Shown(
        "Table 4: ROUGE under H2O, CNN/DailyMail and XSum",
        SUMMARIES,
        "tasks of kind `summaries` named `cnn_dailymail` or `xsum`, under `h2o` at 0.05 (Falcon: "
        "0.1)",
    ),
    "table5": Shown("Table 5: ROUGE of all summaries", SUMMARIES, "tasks of kind `summaries`"),
    "table6": Shown("Table 6: Latency, throughput and memory", LATENCY, "`latency`"),
    "operators": Shown(
        "Operators of a decode step, their bytes and the floor", LATENCY, "`latency`"
    ),
    "conditions": Shown("What times were measured on", LATENCY, "`latency`"),
    "table7": Shown(
        "Table 7: Word perplexity by policy at 5 %",
        POLICIES,
        f"{WORDS} and 0.05 in `grid.test_sparsities`",
    ),
    "table8": Shown("Table 8: Latency of a decode step by part", BREAKDOWN, "`latency`"),
    "perplexity": Shown("Perplexity per token", LANGUAGE, WORDS),
    "word_perplexity": Shown("Word perplexity of the whole grid", LANGUAGE, WORDS),
    "recovered_gap": Shown("Recovered gap", LANGUAGE, f"{WORDS}, and {METHODS}"),
    "paired_difference": Shown(
        "Difference to Baseline+ on the same documents",
        LANGUAGE,
        f"{WORDS}, and `baseline_plus` in `grid.methods`",
    ),
    "scores": Shown("Scores of lm-evaluation-harness tasks", LANGUAGE, "tasks of kind `harness`"),
    "policy_scores": Shown(
        "Scores that count cached tokens, or all", ANALYSIS, "`ablations.scores`"
    ),
    "hellinger": Shown("Hellinger distance to true attention", ANALYSIS, "`fidelity`"),
    "training": Shown("Training losses", TRAINING, "`less` in `grid.methods`"),
}

FIGURES: dict[str, Shown] = {
    "figure1": Shown("Figure 1: Attention maps under H2O", INTUITION, "`maps`"),
    "figure3": Shown("Figure 3: The residual is of low rank", INTUITION, "`maps`"),
    "figure6": Shown("Figure 6: Hellinger distance by layer", ANALYSIS, "`fidelity`"),
    "figure7": Shown("Figure 7: Kernel size at equal memory", ANALYSIS, "`ablations.kernel_sizes`"),
    "figure8": Shown("Figure 8: Score by prompt length", ANALYSIS, "`ablations.prompt_lengths`"),
    "figure9": Shown("Figure 9: Attention maps under H2O, another head", ATTENTION, "`maps`"),
    "figure10": Shown("Figure 10: Attention maps under H2O, more heads", ATTENTION, "`maps`"),
    "figure11": Shown("Figure 11: Attention maps under Λ-masking", ATTENTION, "`maps`"),
    "throughput": Shown("Throughput against batch", LATENCY, "`latency` with several batches"),
    "latency": Shown("Latency against length", LATENCY, "`latency` with several lengths"),
    "memory": Shown("Peak memory against length", LATENCY, "`latency` with several lengths"),
    "step_parts": Shown("A decode step by part", BREAKDOWN, "`latency`"),
    "perplexity": Shown("Perplexity against sparsity", LANGUAGE, WORDS),
    "recovered_gap": Shown(
        "Recovered gap by policy and sparsity", LANGUAGE, f"{WORDS}, and {METHODS}"
    ),
    "loss_curves": Shown("Loss curves of the kernels", TRAINING, "`less` in `grid.methods`"),
}
