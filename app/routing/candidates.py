"""What a choice of an endpoint is made among, and what is noted of it: the loads, and why an endpoint was out.

It is noted for the record of the request (api/request_recorder.py) as one whole number for each of the first endpoints
of the pool, at most `MOST_CANDIDATES`: the load above `BITS` bits, and in these the reason and the unit of the load.
That costs an ordinary request a list of small numbers.
"""

from array import array
from collections.abc import Collection, Iterable, Sequence
from enum import IntFlag
from typing import NamedTuple

from app.routing.endpoint_health import EndpointHealth
from app.shared_memory.counters import InflightCounters

BITS = 4
MILLI = 8
"""Set where the load is an estimate in thousandths of a request, as `least_load` makes it."""
TRIED, GONE, DRAINING, EJECTED, UNHEALTHY, BACKING_OFF = range(1, 7)
REASONS = ("", "tried before", "not served any more", "draining", "ejected", "unhealthy", "backing off")
"""Why an endpoint could not be chosen, by these numbers; 0: it could."""


class Reach(IntFlag):
    """Which endpoints may be chosen beside those that are healthy and not backing off.

    If the pool is in panic and has a healthy endpoint, all count as healthy.
    """

    HEALTHY = 0
    """None."""
    BACKING_OFF = 1
    """If there is no other, the one whose back-off ends first."""
    PANIC = 2
    """All, if the pool is in panic, also if it has no healthy one."""
    ANY = 3
    """Both."""


def words_of(values: Iterable[int]) -> "memoryview[int]":
    """Returns whole numbers in an array of their own."""
    return memoryview(array("q", values))


class Seen(NamedTuple):
    """One endpoint as a choice has seen it."""

    in_flight: int | None
    """Its requests over all workers, None where the load was an estimate."""
    load: float | None
    """The estimate of `least_load`."""
    out: str | None
    """Why it could not be chosen, None if it could."""


def seen_of(noted: int) -> Seen:
    """Returns what the number says of an endpoint."""
    load, reason = noted >> BITS, REASONS[noted & (MILLI - 1)] or None
    return Seen(None, load / 1000, reason) if noted & MILLI else Seen(load, None, reason)


def seen_among(  # noqa: PLR0913, PLR0917  # what a pool has of its endpoints
    shared_ids: Sequence[int],
    found: Collection[int],
    tried: Collection[int],
    gone: Collection[int],
    counters: InflightCounters,
    health: EndpointHealth,
    now: int,
) -> list[int]:
    """Returns what is noted of these endpoints, of which those `found` could be chosen. The lock is held."""
    seen = []
    for shared_id in shared_ids:
        # In the order in which EndpointPool passes endpoints over.
        if shared_id in found:
            reason = 0
        elif shared_id in tried:
            reason = TRIED
        elif shared_id in gone:
            reason = GONE
        elif health.is_draining(shared_id):
            reason = DRAINING
        elif health.is_ejected(shared_id, now):
            reason = EJECTED
        else:
            reason = UNHEALTHY if health.is_unhealthy(shared_id) else BACKING_OFF
        seen.append(counters.total(shared_id) << BITS | reason)
    return seen
