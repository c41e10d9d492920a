"""How long a request would wait for a limit, by Little's law.

`limit` requests of mean duration m that are always replaced end at a rate of limit / m. So a request with so many
before it waits for (ahead + 1) * m / limit.
"""

from collections.abc import Iterable
from math import ceil

_MAX_RETRY_AFTER_S = 60


def expected_wait_ms(ahead: int, limit: int, durations_us: Iterable[int]) -> int | None:
    """Returns the milliseconds, or None while nothing is known: every duration is 0."""
    known = [duration for duration in durations_us if duration]
    if not known:
        return None
    return ceil((max(0, ahead) + 1) * (sum(known) / len(known)) / 1e3 / limit)


def retry_after_s(expected_ms: int | None) -> int:
    """Returns the value of Retry-After, 1 to 60, for a request that is rejected."""
    return 1 if expected_ms is None else min(_MAX_RETRY_AFTER_S, max(1, ceil(expected_ms / 1e3)))
