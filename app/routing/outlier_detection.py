"""Outlier detection: which endpoints are in use, which are ejected, and which request tries an ejected one again.

All workers share the state, one record for each endpoint in the shared table. Records are written under the lock, but
for `unhealthy`, which only the leader writes.
The **circuit** of an endpoint has three states (`_TRANSITIONS` is the whole table):
- **CLOSED**: the endpoint is in use. Consecutive failures, and the failures of a window, are counted; either may eject.
- **OPEN**: it is ejected until a time. Each ejection lasts twice as long as the one before, unless the endpoint was in
  use, since, for longer than it had been out. `max_share` bounds how many endpoints of a pool are ejected at once.
- **HALF_OPEN**: the ejection is over, and one request, the **trial**, decides. It holds a lease of `_TRIAL_LEASE_MS`,
  during which no other request is sent there. If it succeeds, the circuit closes; if it fails, it opens again. If its
  worker dies or its client leaves, the next request is the trial. A trial that outlasts its lease may not be the only
  one: the first to end decides, and the others count as ordinary attempts.

Two more reasons keep requests away: the endpoint failed its health checks (health_checks.py), or it is backing off
because it asked for a pause by `Retry-After`. Times are milliseconds of the monotonic clock that all processes share.

A process may be SIGKILLed between any two stores. Invariant: `unavailable_until_ms` is 0 while the circuit is CLOSED,
also between two stores. So a killed process leaves a record to which the rules above apply. Beside each sequence of
stores stands what its prefixes leave.
"""

from collections.abc import Sequence
from ctypes import Structure, c_int64
from enum import Enum, IntEnum, auto

from app.config.route_schema import Ejection
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, SharedTable, now_ms

_TRIAL_LEASE_MS = 10_000
_MAX_BACK_OFF_MS = 60_000


class Outcome(Enum):
    """How an attempt ended, as far as it tells about the endpoint."""

    SUCCESS = auto()
    FAILURE = auto()
    ABANDONED = auto()
    """The client left, or the worker stopped: it tells nothing."""


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
_FAILURE, _ABANDONED = Outcome.FAILURE, Outcome.ABANDONED


class _Record(Structure):
    """An endpoint's state in the shared table. Every field is one aligned word, so every store is atomic."""

    _fields_ = (
        ("circuit", c_int64),
        ("unavailable_until_ms", c_int64),  # end of the ejection, or of a trial's lease; 0 while closed
        ("backing_off_until_ms", c_int64),
        ("unhealthy", c_int64),
        ("ejections", c_int64),  # in a row
        ("closed_at_ms", c_int64),
        ("consecutive_failures", c_int64),
        ("window", c_int64),  # number of the window that the next two count
        ("window_requests", c_int64),
        ("window_failures", c_int64),
    )

    circuit: int
    unavailable_until_ms: int
    backing_off_until_ms: int
    unhealthy: int
    ejections: int
    closed_at_ms: int
    consecutive_failures: int
    window: int
    window_requests: int
    window_failures: int


_FIELDS = tuple(name for name, *_ in _Record._fields_)
LAYOUT = Layout(arrays={"endpoints": MAX_IDS * len(_FIELDS)})


class OutlierDetector:
    """The state of all endpoints, in one process."""

    def __init__(self, table: SharedTable) -> None:
        self._lock = table.lock
        self._records: list[_Record] = list((_Record * MAX_IDS).from_buffer(table.array("endpoints")))

    def reset(self, shared_id: int) -> None:
        """Forget what was known of the endpoint that had this id. The lock is held."""
        record = self._records[shared_id]
        # The circuit is the first field and is cleared last, for the invariant. If the process is killed before that,
        # the id still has its old name, and whoever gives it to another name resets it again.
        for name in reversed(_FIELDS):
            setattr(record, name, 0)

    def is_available(self, shared_id: int, now: int) -> bool:
        """Whether a request may be sent there. The lock is held if an attempt follows."""
        record = self._records[shared_id]
        return record.unavailable_until_ms <= now and record.backing_off_until_ms <= now and not record.unhealthy

    def is_usable(self, shared_id: int) -> bool:
        """Whether the endpoint is healthy and not ejected.

        An endpoint whose ejection is over is usable. Otherwise a router that has only such endpoints would be taken out
        of service, and would never get the request that is the trial.
        """
        record = self._records[shared_id]
        return not record.unhealthy and record.unavailable_until_ms <= now_ms()

    def circuit(self, shared_id: int) -> Circuit:
        """Returns the state of the endpoint's circuit."""
        return Circuit(self._records[shared_id].circuit)

    def available_at(self, shared_id: int) -> int | None:
        """Returns when the endpoint is available again, in ms, or None if a health check must decide that."""
        record = self._records[shared_id]
        return None if record.unhealthy else max(record.unavailable_until_ms, record.backing_off_until_ms)

    def begin(self, shared_id: int, now: int) -> bool:
        """Begin an attempt. Returns whether it is the trial. The lock is held."""
        record = self._records[shared_id]
        if record.circuit == _CLOSED:
            return False
        # Killed in between: the endpoint stays ejected for the time of a lease, and then gets a trial.
        record.unavailable_until_ms = now + _TRIAL_LEASE_MS
        _change(record, _Event.TRIAL_BEGINS)
        return True

    def end(self, shared_id: int, outcome: Outcome, *, trial: bool, peers: Sequence[int], rules: Ejection) -> bool:
        """Record how an attempt ended. Returns whether that ejected the endpoint.

        `trial` is what `begin` returned, and `peers` are the ids of all endpoints of the pool.
        """
        if outcome is _ABANDONED and not trial:
            return False  # it tells nothing
        record = self._records[shared_id]
        now = now_ms()
        with self._lock:
            circuit = record.circuit
            trial = trial and circuit == _HALF_OPEN  # or else another trial has decided meanwhile
            if circuit != _CLOSED and not trial:
                return False  # it began before the ejection, or is a trial that another one has outrun
            if outcome is _ABANDONED:
                if trial:
                    record.unavailable_until_ms = now  # the next request is the trial
                return False
            _count(record, now, rules, outcome is _FAILURE)
            if outcome is _FAILURE:
                return self._fail(shared_id, now, trial, peers, rules)
            if trial:
                _close(record, now, _Event.TRIAL_SUCCEEDS)
            return False

    def _fail(self, shared_id: int, now: int, trial: bool, peers: Sequence[int], rules: Ejection) -> bool:
        """Eject the endpoint if it fails too often. Returns whether it did. The lock is held."""
        record = self._records[shared_id]
        if not (trial or _fails_too_often(record, rules)):
            return False
        if self._exceeds_max_share(shared_id, peers, rules):
            if trial:
                _close(record, now, _Event.TRIAL_FAILS_BEYOND_MAX_SHARE)
            return False
        _eject(record, now, rules, _Event.TRIAL_FAILS if trial else _Event.TOO_MANY_FAILURES)
        return True

    def back_off(self, shared_id: int, seconds: float) -> None:
        """Keep requests away for as long as the endpoint asked, at most a minute."""
        until = now_ms() + min(_MAX_BACK_OFF_MS, int(seconds * 1000))
        with self._lock:
            self._records[shared_id].backing_off_until_ms = until

    def set_healthy(self, shared_id: int, *, healthy: bool) -> bool:
        """Record what the health checks found; only the leader writes it. Returns whether it has changed."""
        record = self._records[shared_id]
        changed = bool(record.unhealthy) == healthy
        record.unhealthy = not healthy
        return changed

    def _exceeds_max_share(self, shared_id: int, peers: Sequence[int], rules: Ejection) -> bool:
        """Whether too many of the pool were out if this endpoint were ejected. Unhealthy endpoints count as out."""
        others = (self._records[peer] for peer in peers if peer != shared_id)
        out = sum(1 for other in others if other.circuit != _CLOSED or other.unhealthy)
        return out + 1 > rules.max_share * len(peers)


def _change(record: _Record, event: _Event) -> None:
    """Take the circuit through a transition, by one store."""
    record.circuit = _TRANSITIONS[Circuit(record.circuit), event]


def _count(record: _Record, now: int, rules: Ejection, failed: bool) -> None:
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


def _fails_too_often(record: _Record, rules: Ejection) -> bool:
    if record.consecutive_failures >= rules.consecutive_failures:
        return True
    seen = record.window_requests
    return seen >= rules.min_requests and record.window_failures >= rules.failure_rate * seen


def _close(record: _Record, now: int, event: _Event) -> None:
    # The time is stored before the circuit, for the invariant. Killed before the circuit: it stays HALF_OPEN, and the
    # next request is the trial, at the latest when the lease runs out.
    record.closed_at_ms = now
    record.unavailable_until_ms = 0
    _change(record, event)


def _eject(record: _Record, now: int, rules: Ejection, event: _Event) -> None:
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
