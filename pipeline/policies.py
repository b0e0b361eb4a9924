"""Sparse cache policies: one family, five numbers.

After query t a policy keeps the ``sink`` first tokens, the ``recent`` latest tokens (t included)
and, of the rest, the ``heavy`` tokens of highest score, where

    score_t = decay * score_{t-1} + p_t

and p_t is the attention probability query t gives to each key, summed over the query heads that
share an index set. H2O, lambda-masking and TOVA are rows of :data:`FAMILIES`; a new policy of the
family is a new row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError, unknown

Pooling = Literal["group", "layer"]


@dataclass(frozen=True)
class Policy:
    """A policy with its budget spelled out in tokens.

    Attributes:
        name: the family member, as in :data:`FAMILIES`.
        sink: first tokens that are never evicted.
        recent: latest tokens (the current one included) that are never evicted.
        heavy: further tokens kept by score.
        decay: gamma of the score recursion; 1 accumulates, 0 looks at the newest query only.
        pooling: ``group`` keeps one index set per key/value head (scores summed over its query
            heads), ``layer`` one per layer (scores summed over all heads).
    """

    name: str
    sink: int
    recent: int
    heavy: int
    decay: float
    pooling: Pooling

    def __post_init__(self) -> None:
        if min(self.sink, self.recent, self.heavy) < 0 or self.budget < 1:
            raise ConfigError(
                f"policy '{self.name}': sink, recent and heavy must be non-negative and add up to "
                f"at least 1 token (got {self.sink}, {self.recent}, {self.heavy})."
            )
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"policy '{self.name}': decay must lie in [0, 1], got {self.decay}.")

    @property
    def budget(self) -> int:
        """Tokens kept between steps: C = sink + recent + heavy."""
        return self.sink + self.recent + self.heavy

    @property
    def needs_scores(self) -> bool:
        """Whether attention probabilities decide anything."""
        return self.heavy > 0


@dataclass(frozen=True)
class Family:
    """How a family member splits a budget.

    Attributes:
        title: as printed in tables and figures.
        sink: tokens reserved for the start of the sequence.
        heavy_share: share of the remaining budget that goes to heavy hitters, rounded down.
        decay, pooling: see :class:`Policy`.
        reference: where the policy was published.
    """

    title: str
    sink: int
    heavy_share: float
    decay: float
    pooling: Pooling
    reference: str


FAMILIES: dict[str, Family] = {
    "h2o": Family(
        title="H2O",
        sink=0,
        heavy_share=0.5,
        decay=1.0,
        pooling="group",
        reference="Zhang et al. 2023, arXiv:2306.14048",
    ),
    "lambda": Family(
        title="Λ-masking",
        sink=4,
        heavy_share=0.0,
        decay=0.0,
        pooling="group",
        reference="Xiao et al. 2023, arXiv:2309.17453; also 2308.16137",
    ),
    "tova": Family(
        title="TOVA",
        sink=0,
        heavy_share=1.0,
        decay=0.0,
        pooling="layer",
        reference="Oren et al. 2024, arXiv:2401.06104",
    ),
    "decayed": Family(
        title="Decayed H2O",
        sink=0,
        heavy_share=0.5,
        decay=0.9,
        pooling="group",
        reference="H2O with exponentially decayed scores",
    ),
}
"""The members of the family, by the name that configurations and :func:`get_policy` take."""


def get_policy(name: str, budget: int) -> Policy:
    """Return the policy ``name`` holding ``budget`` tokens.

    Baseline+ is the same call with a larger budget: H2O then splits the extra tokens over heavy
    and recent, lambda-masking gives them to recent, TOVA to heavy.

    Raises:
        ConfigError: unknown name (the nearest is suggested) or a budget below one token.
    """
    if name not in FAMILIES:
        raise unknown("policy", name, FAMILIES)
    if budget < 1:
        raise ConfigError(f"policy '{name}': the budget must be at least 1 token, got {budget}.")
    family = FAMILIES[name]
    sink = min(family.sink, budget)
    heavy = math.floor((budget - sink) * family.heavy_share)
    return Policy(
        name=name,
        sink=sink,
        recent=budget - sink - heavy,
        heavy=heavy,
        decay=family.decay,
        pooling=family.pooling,
    )


def state_tokens(kernel_size: int) -> int:
    """Return the tokens whose pairs take as many numbers as a low-rank state of R features: R/2.

    The state of a head of size d is H, R x d, and z, R; a token's key and value are 2 d. The paper
    leaves z out of the count (section 4).
    """
    return kernel_size // 2


def budget_tokens(sparsity: float, context: int) -> int:
    """Return the budget in tokens: ``sparsity`` of ``context``, rounded down to even (Table 1).

    Raises:
        ConfigError: the sparsity is outside (0, 1) or leaves fewer than two tokens.
    """
    if not 0 < sparsity < 1:
        raise ConfigError(f"sparsity must lie in (0, 1), got {sparsity}.")
    # A decimal such as 0.07 * 100 must not fall just below the integer it means.
    budget = math.floor(round(sparsity * context, 6)) // 2 * 2
    if budget < 2:
        raise ConfigError(
            f"sparsity {sparsity} of a context of {context} tokens leaves {budget} tokens; "
            "raise the sparsity or the context."
        )
    return budget
