"""Outlier detection: which endpoints are in use, which are ejected, and which request tries an ejected one again.

All workers share the state (endpoint_records.py), and write it under the lock. The **circuit** of an endpoint has
three states (`_TRANSITIONS` is the whole table):
- **CLOSED**: the endpoint is in use. Consecutive failures, and the failures of a window, are counted; either may eject.
- **OPEN**: it is ejected until a time. Each ejection lasts twice as long as the one before, unless the endpoint was in
  use, since, for longer than it had been out. `max_share` bounds how many endpoints of a pool are ejected at once.
- **HALF_OPEN**: the ejection is over, and one request, the **trial**, decides. It holds a lease of `_TRIAL_LEASE_MS`,
  during which no other request is sent there. If it succeeds, the circuit closes; if it fails, it opens again. If its
  worker dies or its client leaves, the next request is the trial. A trial that outlasts its lease may not be the only
  one: the first to end decides, and the others count as ordinary attempts.

An endpoint that hangs may never make a request fail, if its clients leave before a timeout. So a client that leaves
before the first byte counts as a failure if it waited for longer than the endpoint usually takes (first_byte.py), and
if the endpoint has served nobody since it was contacted. An endpoint that is busy with a long prompt goes on serving
others, and a client that leaves early says nothing.

Two more reasons keep requests away: unhealthy endpoints (endpoint_health.py) and those that back off (back_off.py).

A process may be SIGKILLed between any two stores. Invariant: `unavailable_until_ms` is 0 while the circuit is CLOSED,
also between two stores. So a killed process leaves a record to which the rules above apply. Beside each sequence of
stores stands what its prefixes leave.
"""

from enum import Enum, IntEnum, auto

from app.config.route_schema import Ejection
from app.native import now_ms
from app.routing.endpoint_health import panics
from app.routing.endpoint_records import EndpointRecords
from app.routing.first_byte import learn, too_long_us

_TRIAL_LEASE_MS = 10_000


class Outcome(Enum):
    """How an attempt ended, as far as it tells about the endpoint."""

    SUCCESS = auto()
    FAILURE = auto()
    ABANDONED = auto()
    """The client left, or the worker stopped: it tells nothing."""
    UNANSWERED = auto()
    """The client left before the first byte: a failure if the wait was too long, or else it tells nothing."""


class Ended:
    """An attempt that ended."""

    __slots__ = ("contacted_ms", "first_byte_us", "outcome", "trial")

    def __init__(self, outcome: Outcome, trial: bool = False, contacted_ms: int = 0, first_byte_us: int = 0) -> None:
        self.outcome = outcome
        self.trial = trial
        """What `OutlierDetector.begin` returned."""
        self.contacted_ms = contacted_ms
        """When the endpoint was contacted; 0: it was not, so no wait for it was too long."""
        self.first_byte_us = first_byte_us
        """How long the first byte took; 0: there was none, or it was none of an inference."""


class PoolRules:
    """What decides whether an endpoint of a pool may be ejected."""

    __slots__ = ("ejection", "panic_threshold", "shared_ids")

    def __init__(self, shared_ids: list[int], ejection: Ejection, panic_threshold: float = 0.0) -> None:
        self.shared_ids = shared_ids
        """All endpoints of the pool."""
        self.ejection = ejection
        self.panic_threshold = panic_threshold
        """See `EndpointHealth.panics`."""


class Circuit(IntEnum):
    """Whether an endpoint is in use."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


class _Event(Enum):
    """What changes a circuit."""

    TOO_MANY_FAILURES = auto()
    TRIAL_BEGINS = auto()
    TRIAL_SUCCEEDS = auto()
    TRIAL_FAILS = auto()
    TRIAL_FAILS_BEYOND_MAX_SHARE = auto()


_TRANSITIONS: dict[tuple[Circuit, _Event], Circuit] = {
    (Circuit.CLOSED, _Event.TOO_MANY_FAILURES): Circuit.OPEN,
    (Circuit.OPEN, _Event.TRIAL_BEGINS): Circuit.HALF_OPEN,
    (Circuit.HALF_OPEN, _Event.TRIAL_BEGINS): Circuit.HALF_OPEN,  # the lease of the last trial ran out
    (Circuit.HALF_OPEN, _Event.TRIAL_SUCCEEDS): Circuit.CLOSED,
    (Circuit.HALF_OPEN, _Event.TRIAL_FAILS): Circuit.OPEN,
    (Circuit.HALF_OPEN, _Event.TRIAL_FAILS_BEYOND_MAX_SHARE): Circuit.CLOSED,
}

# The members that every request is compared with, as names of the module: looking one up in its enum costs more.
_CLOSED, _HALF_OPEN = Circuit.CLOSED, Circuit.HALF_OPEN
_SUCCESS, _FAILURE, _ABANDONED, _UNANSWERED = Outcome


class OutlierDetector:
    """The circuits of all endpoints, in one process."""

    def __init__(self, records: EndpointRecords) -> None:
        self._lock = records.lock
        self._records = records

    def circuit(self, shared_id: int) -> Circuit:
        """Returns the state of the endpoint's circuit."""
        return Circuit(self._records.circuit[shared_id])

    def begin(self, shared_id: int, now: int) -> bool:
        """Begin an attempt. Returns whether it is the trial. The lock is held."""
        records = self._records
        if records.circuit[shared_id] == _CLOSED:
            return False
        # Killed in between: the endpoint stays ejected for the time of a lease, and then gets a trial.
        records.unavailable_until_ms[shared_id] = now + _TRIAL_LEASE_MS
        self._change(shared_id, _Event.TRIAL_BEGINS)
        return True

    def end(self, shared_id: int, ended: Ended, pool: PoolRules) -> bool:
        """Record how an attempt ended. Returns whether that ejected the endpoint."""
        outcome, trial = ended.outcome, ended.trial
        if outcome is _ABANDONED and not trial:
            return False  # it tells nothing
        records = self._records
        self._lock.acquire()
        try:
            now = now_ms()
            if outcome is _UNANSWERED:
                outcome = _FAILURE if self._is_silent(shared_id, ended.contacted_ms, now) else _ABANDONED
            if ended.first_byte_us and outcome is _SUCCESS:
                learn(records, shared_id, ended.first_byte_us)
                records.last_served_ms[shared_id] = now
            circuit = records.circuit[shared_id]
            trial = trial and circuit == _HALF_OPEN  # or else another trial has decided meanwhile
            if circuit != _CLOSED and not trial:
                return False  # it began before the ejection, or is a trial that another one has outrun
            if outcome is _ABANDONED:
                if trial:
                    records.unavailable_until_ms[shared_id] = now  # the next request is the trial
                return False
            self._count(shared_id, now, pool.ejection, outcome is _FAILURE)
            if outcome is _FAILURE:
                return self._fail(shared_id, now, trial, pool)
            if trial:
                self._close(shared_id, now, _Event.TRIAL_SUCCEEDS)
            return False
        finally:
            self._lock.release()

    def fails_too_often(self, shared_id: int, pool: PoolRules) -> bool:
        """Whether the endpoint is in use only because too many others are out."""
        return self._records.circuit[shared_id] == _CLOSED and self._has_failed_too_often(shared_id, pool.ejection)

    def _fail(self, shared_id: int, now: int, trial: bool, pool: PoolRules) -> bool:
        """Eject the endpoint if it fails too often. Returns whether it did. The lock is held."""
        rules = pool.ejection
        if not (trial or self._has_failed_too_often(shared_id, rules)):
            return False
        if self._exceeds_max_share(shared_id, now, pool):
            if trial:
                self._close(shared_id, now, _Event.TRIAL_FAILS_BEYOND_MAX_SHARE)
            return False
        self._eject(shared_id, now, rules, _Event.TRIAL_FAILS if trial else _Event.TOO_MANY_FAILURES)
        return True

    def _exceeds_max_share(self, shared_id: int, now: int, pool: PoolRules) -> bool:
        """Whether too many of the pool were out if this endpoint were ejected.

        Unhealthy endpoints count as out, but not in panic: then they are used. Those that drain count in any case.
        """
        records = self._records
        panic = panics(records, pool.shared_ids, pool.panic_threshold, now)
        out = 0
        for peer in pool.shared_ids:
            if (
                peer == shared_id
                or records.draining[peer]
                or records.circuit[peer] != _CLOSED
                or (records.unhealthy[peer] and not panic)
            ):
                out += 1
        return out > pool.ejection.max_share * len(pool.shared_ids)

    def _is_silent(self, shared_id: int, contacted_ms: int, now: int) -> bool:
        """Whether an attempt without a first byte waited for too long, and nobody else was served in that time."""
        # False for an endpoint that was not contacted: no time is before 0.
        records = self._records
        if records.last_served_ms[shared_id] >= contacted_ms:
            return False
        return (now - contacted_ms) * 1000 >= too_long_us(records, shared_id)

    def _change(self, shared_id: int, event: _Event) -> None:
        """Take the circuit through a transition, by one store."""
        self._records.circuit[shared_id] = _TRANSITIONS[Circuit(self._records.circuit[shared_id]), event]

    def _count(self, shared_id: int, now: int, rules: Ejection, failed: bool) -> None:
        # Killed before the window's number is stored: the next attempt starts the window again. Killed later: this
        # attempt is counted in part or not at all. A window never has more failures than requests, also between two
        # stores.
        records = self._records
        window = int(now / (rules.window_s * 1000))
        if records.window[shared_id] != window:
            records.window_failures[shared_id] = 0
            records.window_requests[shared_id] = 0
            records.window[shared_id] = window
        records.window_requests[shared_id] += 1
        if failed:
            records.consecutive_failures[shared_id] += 1
            records.window_failures[shared_id] += 1
        else:
            records.consecutive_failures[shared_id] = 0

    def _has_failed_too_often(self, shared_id: int, rules: Ejection) -> bool:
        records = self._records
        if records.consecutive_failures[shared_id] >= rules.consecutive_failures:
            return True
        seen = records.window_requests[shared_id]
        return seen >= rules.min_requests and records.window_failures[shared_id] >= rules.failure_rate * seen

    def _close(self, shared_id: int, now: int, event: _Event) -> None:
        # The time is stored before the circuit, for the invariant. Killed before the circuit: it stays HALF_OPEN, and
        # the next request is the trial, at the latest when the lease runs out.
        records = self._records
        records.closed_at_ms[shared_id] = now
        records.unavailable_until_ms[shared_id] = 0
        self._change(shared_id, event)

    def _eject(self, shared_id: int, now: int, rules: Ejection, event: _Event) -> None:
        # The circuit is stored before the time, for the invariant. Killed before the circuit: it stays as it was,
        # failures are counted from 0, and the next ejection may be one step longer or the first of a row. Killed before
        # the time: the circuit is OPEN, and the ejection ends at once or with the trial's lease.
        records = self._records
        last_ms = _ejection_ms(records.ejections[shared_id], rules)
        if event is _Event.TOO_MANY_FAILURES and now - records.closed_at_ms[shared_id] > last_ms:
            records.ejections[shared_id] = 0
        records.ejections[shared_id] += 1
        records.consecutive_failures[shared_id] = 0
        records.window_failures[shared_id] = 0
        records.window_requests[shared_id] = 0
        self._change(shared_id, event)
        records.unavailable_until_ms[shared_id] = now + _ejection_ms(records.ejections[shared_id], rules)


def _ejection_ms(ejections: int, rules: Ejection) -> int:
    """Returns how long the n-th ejection in a row lasts."""
    return int(1000 * min(rules.max_s, rules.base_s * 2 ** min(ejections - 1, 30)))
