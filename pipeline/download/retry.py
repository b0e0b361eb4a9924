"""Trying again what a network refuses once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_exponential
from tenacity.retry import retry_if_exception

TRIES = 3
FIRST_WAIT_S = 2.0
"""Before the second try; twice as long before each one after it."""

Result = TypeVar("Result")


def persistently(
    attempt: Callable[[int], Result], lasting: Callable[[Exception], bool] = lambda error: False
) -> Result:
    """Return what ``attempt`` gives, called with its number (from 0) up to :data:`TRIES` times.

    Args:
        lasting: tells of an error whether it would be the same next time.

    Raises:
        Exception: whatever the last try raised.
    """
    tries = Retrying(
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential(multiplier=FIRST_WAIT_S),
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not lasting(error)),
        before_sleep=_announce,
        reraise=True,
    )
    return tries(lambda: attempt(tries.statistics["attempt_number"] - 1))


def _announce(state: RetryCallState) -> None:
    """Print what went wrong, and when the next try is."""
    error = state.outcome.exception() if state.outcome else None
    said = (str(error).splitlines() or [type(error).__name__])[0]
    wait = state.upcoming_sleep
    print(f"try {state.attempt_number} of {TRIES}: {said} Again in {wait:g} s.", file=sys.stderr)
