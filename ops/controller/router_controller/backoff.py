"""Exponential back-off with jitter."""

import random

FIRST_S = 0.5


def delay_s(failures: int, longest_s: float, retry_after_s: float = 0.0) -> float:
    """Returns how long to wait after so many failures in a row, never less than the API server's Retry-After.

    Half of the delay is random, so that those who failed together do not come back together.
    """
    longest: float = min(longest_s, FIRST_S * 2.0 ** min(failures - 1, 16))
    jittered = longest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing
    return max(retry_after_s, jittered)
