"""The latency study's cells: how long a prompt and its continuation are, and how many at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..policies import budget_tokens
from .methods import FULL, METHODS

PATTERN = r"\d+\+\d+x\d+"
"""What a setting's name looks like."""
FORMS = ("engine", "generate")
"""How a continuation is decoded: by our engine, or by the library's `generate`."""


@dataclass(frozen=True)
class Setting:
    """A row of the paper's Table 6: prompt + new tokens x batch."""

    prompt: int
    new_tokens: int
    batch: int

    @property
    def name(self) -> str:
        """As the paper's table names it: its task in the tidy table."""
        return f"{self.prompt}+{self.new_tokens}x{self.batch}"

    @classmethod
    def of(cls, name: str) -> Setting:
        """Return the setting of a name."""
        return cls(*map(int, re.split(r"[+x]", name)))


@dataclass(frozen=True)
class Contender:
    """What is timed: the full cache, or a method under a policy at a sparsity."""

    method: str
    policy: str | None = None
    sparsity: float | None = None
    budget: int | None = None

    @property
    def train_sparsity(self) -> float | None:
        """Where kernels would be trained: they are not, but tables name methods by it."""
        trained = self.method != FULL and METHODS[self.method].trained
        return self.sparsity if trained else None


def settings(config: Mapping[str, Any]) -> list[Setting]:
    """Return settings of an experiment; none without `latency`."""
    wanted = config["latency"]
    return [setting_of(entry) for entry in wanted["settings"]] if wanted else []


def setting_of(entry: Mapping[str, Any]) -> Setting:
    """Return the setting that an entry of `latency.settings` describes."""
    return Setting(entry["prompt"], entry["new_tokens"], entry["batch"])


def contenders(config: Mapping[str, Any], model: str, setting: Setting) -> Iterator[Contender]:
    """Yield what a setting compares, the full cache first.

    Sparsities are fractions of the model's context, or of the whole sequence where it is longer.
    """
    wanted = config["latency"]
    entry = next(e for e in wanted["settings"] if setting_of(e) == setting)
    length = max(config["models"][model]["context"], setting.prompt + setting.new_tokens)
    size = config["train"]["kernel"]["kernel_size"]
    yield Contender(FULL)
    for policy in entry.get("policies", wanted["policies"]):
        for sparsity in wanted["sparsities"]:
            budget = budget_tokens(sparsity, length)
            for method in wanted["methods"]:
                yield Contender(method, policy, sparsity, METHODS[method].budget(budget, size))
