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

from collections.abc import Sequence
from enum import Enum, IntEnum, auto
from typing import NamedTuple

from app.config.route_schema import Ejection
from app.routing.endpoint_health import panics
from app.routing.endpoint_records import EndpointRecords, Record
from app.routing.first_byte import learn, too_long_us
from app.shared_memory.table import now_ms

_TRIAL_LEASE_MS = 10_000


class Outcome(Enum):
    """How an attempt ended, as far as it tells about the endpoint."""

    SUCCESS = auto()
    FAILURE = auto()
    ABANDONED = auto()
    """The client left, or the worker stopped: it tells nothing."""
    UNANSWERED = auto()
    """The client left before the first byte: a failure if the wait was too long, or else it tells nothing."""


class Ended(NamedTuple):
    """An attempt that ended."""

    outcome: Outcome
    trial: bool = False
    """What `OutlierDetector.begin` returned."""
    contacted_ms: int = 0
    """When the endpoint was contacted; 0: it was not, so no wait for it was too long."""
    first_byte_us: int = 0
    """How long the first byte took; 0: there was none, or it was none of an inference."""


class PoolRules(NamedTuple):
    """What decides whether an endpoint of a pool may be ejected."""

    shared_ids: Sequence[int]
    """All endpoints of the pool."""
    ejection: Ejection
    panic_threshold: float = 0.0
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
        self._records = records.of

    def circuit(self, shared_id: int) -> Circuit:
        """Returns the state of the endpoint's circuit."""
        return Circuit(self._records[shared_id].circuit)

    def begin(self, shared_id: int, now: int) -> bool:
        """Begin an attempt. Returns whether it is the trial. The lock is held."""
        record = self._records[shared_id]
        if record.circuit == _CLOSED:
            return False
        # Killed in between: the endpoint stays ejected for the time of a lease, and then gets a trial.
        record.unavailable_until_ms = now + _TRIAL_LEASE_MS
        _change(record, _Event.TRIAL_BEGINS)
        return True

    def end(self, shared_id: int, ended: Ended, pool: PoolRules) -> bool:
        """Record how an attempt ended. Returns whether that ejected the endpoint."""
        outcome, trial, contacted_ms, first_byte_us = ended
        if outcome is _ABANDONED and not trial:
            return False  # it tells nothing
        record = self._records[shared_id]
        with self._lock:
            now = now_ms()
            if outcome is _UNANSWERED:
                outcome = _FAILURE if _is_silent(record, contacted_ms, now) else _ABANDONED
            if first_byte_us and outcome is _SUCCESS:
                learn(record, first_byte_us)
                record.last_served_ms = now
            circuit = record.circuit
            trial = trial and circuit == _HALF_OPEN  # or else another trial has decided meanwhile
            if circuit != _CLOSED and not trial:
                return False  # it began before the ejection, or is a trial that another one has outrun
            if outcome is _ABANDONED:
                if trial:
                    record.unavailable_until_ms = now  # the next request is the trial
                return False
            _count(record, now, pool.ejection, outcome is _FAILURE)
            if outcome is _FAILURE:
                return self._fail(shared_id, now, trial, pool)
            if trial:
                _close(record, now, _Event.TRIAL_SUCCEEDS)
            return False

    def fails_too_often(self, shared_id: int, pool: PoolRules) -> bool:
        """Whether the endpoint is in use only because too many others are out."""
        record = self._records[shared_id]
        return record.circuit == _CLOSED and _fails_too_often(record, pool.ejection)

    def _fail(self, shared_id: int, now: int, trial: bool, pool: PoolRules) -> bool:
        """Eject the endpoint if it fails too often. Returns whether it did. The lock is held."""
        record, rules = self._records[shared_id], pool.ejection
        if not (trial or _fails_too_often(record, rules)):
            return False
        if self._exceeds_max_share(shared_id, now, pool):
            if trial:
                _close(record, now, _Event.TRIAL_FAILS_BEYOND_MAX_SHARE)
            return False
        _eject(record, now, rules, _Event.TRIAL_FAILS if trial else _Event.TOO_MANY_FAILURES)
        return True

    def _exceeds_max_share(self, shared_id: int, now: int, pool: PoolRules) -> bool:
        """Whether too many of the pool were out if this endpoint were ejected.

        Unhealthy endpoints count as out, but not in panic: then they are used.
        """
        records = [self._records[peer] for peer in pool.shared_ids]
        panic = panics(records, pool.panic_threshold, now)
        out = sum(1 for record in records if record.circuit != _CLOSED or (record.unhealthy and not panic))
        itself = self._records[shared_id]
        if itself.circuit == _CLOSED and (panic or not itself.unhealthy):
            out += 1
        return out > pool.ejection.max_share * len(records)


def _is_silent(record: Record, contacted_ms: int, now: int) -> bool:
    """Whether an attempt without a first byte waited for too long, and nobody else was served in that time."""
    # False for an endpoint that was not contacted: no time is before 0.
    return record.last_served_ms < contacted_ms and (now - contacted_ms) * 1000 >= too_long_us(record)


def _change(record: Record, event: _Event) -> None:
    """Take the circuit through a transition, by one store."""
    record.circuit = _TRANSITIONS[Circuit(record.circuit), event]


def _count(record: Record, now: int, rules: Ejection, failed: bool) -> None:
    # Killed before the window's number is stored: the next attempt starts the window again. Killed later: this attempt
    # is counted in part or not at all. A window never has more failures than requests, also between two stores.
    window = int(now / (rules.window_s * 1000))
    if record.window != window:
        record.window_failures = record.window_requests = 0
        record.window = window
    record.window_requests += 1
    if failed:
        record.consecutive_failures += 1
        record.window_failures += 1
    else:
        record.consecutive_failures = 0


def _fails_too_often(record: Record, rules: Ejection) -> bool:
    if record.consecutive_failures >= rules.consecutive_failures:
        return True
    seen = record.window_requests
    return seen >= rules.min_requests and record.window_failures >= rules.failure_rate * seen


def _close(record: Record, now: int, event: _Event) -> None:
    # The time is stored before the circuit, for the invariant. Killed before the circuit: it stays HALF_OPEN, and the
    # next request is the trial, at the latest when the lease runs out.
    record.closed_at_ms = now
    record.unavailable_until_ms = 0
    _change(record, event)


def _eject(record: Record, now: int, rules: Ejection, event: _Event) -> None:
    # The circuit is stored before the time, for the invariant. Killed before the circuit: it stays as it was, failures
    # are counted from 0, and the next ejection may be one step longer or the first of a row. Killed before the time:
    # the circuit is OPEN, and the ejection ends at once or with the trial's lease.
    last_ms = _ejection_ms(record.ejections, rules)
    if event is _Event.TOO_MANY_FAILURES and now - record.closed_at_ms > last_ms:
        record.ejections = 0
    record.ejections += 1
    record.consecutive_failures = record.window_failures = record.window_requests = 0
    _change(record, event)
    record.unavailable_until_ms = now + _ejection_ms(record.ejections, rules)


def _ejection_ms(ejections: int, rules: Ejection) -> int:
    """Returns how long the n-th ejection in a row lasts."""
    return int(1000 * min(rules.max_s, rules.base_s * 2 ** min(ejections - 1, 30)))
