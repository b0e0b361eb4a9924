"""Trying again what a network refuses once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

TRIES = 3
FIRST_WAIT_S = 2.0
"""Before the second try; twice as long before each one after it."""

Result = TypeVar("Result")


def persistently(
    attempt: Callable[[int], Result], lasting: Callable[[Exception], bool] = lambda error: False
) -> Result:
    """What ``attempt`` gives, called with its number (from 0) up to :data:`TRIES` times.

    Args:
        lasting: whether an error would be the same next time.

    Raises:
        Exception: whatever the last try raised.
    """
    for number in range(TRIES):
        try:
            return attempt(number)
        except Exception as error:
            if number + 1 == TRIES or lasting(error):
                raise
            wait = FIRST_WAIT_S * 2**number
            said = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"try {number + 1} of {TRIES}: {said} Again in {wait:g} s.", file=sys.stderr)
            time.sleep(wait)
    raise AssertionError("there are no tries")
