"""How each endpoint is doing, known to all workers: which may be tried, which is ejected, and who tries it again.

States, kept by place (usage.py) in the shared table and changed under the lock only:
- **In.** Failures in a row and the failures of a window are counted; either may eject.
- **Ejected** until a time. Each ejection lasts twice as long as the one before, unless the endpoint stayed in, since,
  for longer than it had been out. Never are more of a version's endpoints ejected than its share allows.
- **On probation** once the time is over. The next request that chooses it is the probe, and moves the time on by
  `_PROBE_LEASE_MS`, so that nobody else tries. If the probe succeeds the endpoint is in; if it fails, ejected anew; if
  its worker dies or its client leaves, the next request is the probe. One that takes longer than its lease may not be
  the only one; the first to end decides, and the others count like any attempt.

Two more reasons to leave one out: the prober found it unwell (health_checks.py), or it asked to be left alone for a
while by `Retry-After`. Times are milliseconds of the machine's monotonic clock, which all processes share.
"""

from collections.abc import Sequence
from enum import Enum, auto

from app.config.route_schema import Ejection
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, SharedTable, now_ms

_FIELDS = 10
_UNTIL, _EJECTIONS, _BACK, _FAILURES, _WINDOW, _SEEN, _FAILED, _AWAY, _UNWELL, _PROBED = range(_FIELDS)
LAYOUT = Layout(arrays={"endpoints": MAX_IDS * _FIELDS})

_PROBE_LEASE_MS = 10_000
_MAX_AWAY_MS = 60_000


class Outcome(Enum):
    """How an attempt ended, for the endpoint's account."""

    SUCCESS = auto()
    FAILURE = auto()
    ABANDONED = auto()
    """The client left, or the worker stopped: it says nothing of the endpoint."""


class OutlierDetector:
    """The states, in one process."""

    def __init__(self, table: SharedTable) -> None:
        self._lock = table.lock
        self._state = table.array("endpoints")

    def reset(self, place: int) -> None:
        """Know nothing of an endpoint that is new. Needs the lock."""
        for at in range(place * _FIELDS, (place + 1) * _FIELDS):
            self._state[at] = 0

    def is_available(self, place: int, now: int) -> bool:
        """Whether it is in, or on probation with nobody trying. Needs the lock if one acts upon it."""
        at = place * _FIELDS
        state = self._state
        return not state[at + _UNWELL] and state[at + _UNTIL] <= now and state[at + _AWAY] <= now

    def is_up(self, place: int) -> bool:
        """Whether it is well, and in or on probation.

        Probation counts as up: were nothing up then, a router that is only sent requests while something is would
        never be sent the probe.
        """
        at = place * _FIELDS
        return not self._state[at + _UNWELL] and self._state[at + _UNTIL] <= now_ms()

    def available_at(self, place: int) -> int | None:
        """When it may be tried again, or None if nobody knows."""
        at = place * _FIELDS
        if self._state[at + _UNWELL]:
            return None
        return max(self._state[at + _UNTIL], self._state[at + _AWAY])

    def begin(self, place: int, now: int) -> bool:
        """Somebody tries it: answers whether that is the probe. Needs the lock."""
        at = place * _FIELDS
        if not self._state[at + _UNTIL]:
            return False
        self._state[at + _PROBED] = True
        self._state[at + _UNTIL] = now + _PROBE_LEASE_MS
        return True

    def end(self, place: int, outcome: Outcome, *, probe: bool, peers: Sequence[int], rules: Ejection) -> bool:
        """Enter how an attempt ended. `peers` are the places of its version. Answers whether it was ejected now."""
        state, at = self._state, place * _FIELDS
        if outcome is Outcome.ABANDONED and not probe:
            return False
        now = now_ms()
        with self._lock:
            probe = probe and bool(state[at + _PROBED])  # or else another probe has decided meanwhile
            if outcome is Outcome.ABANDONED:
                if probe:
                    state[at + _UNTIL] = now
                return False
            if state[at + _UNTIL] and not probe:
                return False  # an attempt from before the ejection
            window = int(now / (rules.window_s * 1000))
            if state[at + _WINDOW] != window:
                state[at + _SEEN] = state[at + _FAILED] = 0
                state[at + _WINDOW] = window
            state[at + _SEEN] += 1
            if outcome is Outcome.SUCCESS:
                state[at + _FAILURES] = 0
                if probe:
                    self._let_in(at, now)
                return False
            state[at + _FAILURES] += 1
            state[at + _FAILED] += 1
            return (probe or self._too_bad(at, rules)) and self._eject(at, now, probe, peers, rules)

    def back_off(self, place: int, seconds: float) -> None:
        """It asked not to be tried for so long; at most a minute of that is granted."""
        until = now_ms() + min(_MAX_AWAY_MS, int(seconds * 1000))
        with self._lock:
            self._state[place * _FIELDS + _AWAY] = until

    def set_healthy(self, place: int, *, well: bool) -> bool:
        """What the prober found; it is the only writer. Answers whether that is news."""
        at = place * _FIELDS + _UNWELL
        news = self._state[at] == well
        self._state[at] = not well
        return news

    def _let_in(self, at: int, now: int) -> None:
        self._state[at + _BACK] = now
        self._state[at + _PROBED] = False
        self._state[at + _UNTIL] = 0

    def _too_bad(self, at: int, rules: Ejection) -> bool:
        seen, failed = self._state[at + _SEEN], self._state[at + _FAILED]
        in_a_row = self._state[at + _FAILURES] >= rules.consecutive_failures
        return in_a_row or (seen >= rules.min_requests and failed >= rules.failure_rate * seen)

    def _eject(self, at: int, now: int, probe: bool, peers: Sequence[int], rules: Ejection) -> bool:
        state = self._state
        others = [peer * _FIELDS for peer in peers if peer * _FIELDS != at]
        out = sum(1 for other in others if state[other + _UNTIL] or state[other + _UNWELL])
        if out + 1 > rules.max_share * len(peers):
            if probe:
                self._let_in(at, now)
            return False
        last = _duration_ms(state[at + _EJECTIONS], rules)
        if not probe and now - state[at + _BACK] > last:
            state[at + _EJECTIONS] = 0
        state[at + _EJECTIONS] += 1
        state[at + _FAILURES] = state[at + _SEEN] = state[at + _FAILED] = state[at + _PROBED] = 0
        state[at + _UNTIL] = now + _duration_ms(state[at + _EJECTIONS], rules)
        return True


def _duration_ms(ejections: int, rules: Ejection) -> int:
    """How long the n-th ejection in a row lasts."""
    return int(1000 * min(rules.max_s, rules.base_s * 2 ** min(ejections - 1, 30)))
