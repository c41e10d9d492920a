"""Endpoints by the DNS: what a name has is looked up again when its TTL is over, within bounds."""

import random
from collections.abc import Sequence

import gevent

from app.config.discovered import Source
from app.discovery.findings import BackOff, DiscoveryFailed, Findings

FLOOR_S = 1.0
CEILING_S = 30.0
EMPTY_S = 2.0
"""A name without addresses is looked up again so soon, whatever its TTL: requests may wait for its first one."""


def follow(source: Source, last: Sequence[str], findings: Findings) -> None:
    """Report what a name has, whenever that is due. Never returns. `last` is what was published of it."""
    from app.discovery.dns_lookup import look_up  # noqa: PLC0415  # see `prepare`

    back_off = BackOff(FLOOR_S, CEILING_S)
    while True:
        try:
            records = look_up(source, last)
        except DiscoveryFailed as error:
            findings.failed(error)
            gevent.sleep(back_off.wait_s())
            continue
        back_off.reset()
        last = tuple(records.urls)
        findings.found(last, records.failure)
        gevent.sleep(refresh_after_s(records.ttl_s) if last else EMPTY_S)


def prepare() -> None:
    """Import dnspython now, where nobody waits: it takes 0.2 s, and 6 MiB that workers share if it precedes the fork.

    A router without such routes does without it; one that gets them later imports it with the first lookup.
    """
    import app.discovery.dns_lookup  # noqa: F401, PLC0415


def refresh_after_s(ttl_s: float) -> float:
    """Returns when to look a name up again: its TTL within the bounds, or a little less so that pods spread."""
    return max(FLOOR_S, min(ttl_s, CEILING_S) * random.uniform(0.9, 1.0))  # noqa: S311  # spreads load
