"""Writes the record of every inference request, when its exchange has ended: once, in this worker's ring.

It runs for every request, so it does as little as it can: it stores words (tests/bench/records.py measures it).
"""

from app.api.exchange import Exchange
from app.errors import Overload
from app.native import store_id
from app.observability.request_record import (
    CODE_NUMBERS,
    FALLBACKS,
    MOST_ATTEMPTS,
    MOST_FULL,
    SCOPES,
    UNKNOWN_MS,
    attempt_code,
)
from app.protocols.calls import Attempts
from app.routing.attempt_record import PoolMembers
from app.shared_memory.request_ring import RequestRing
from app.shared_memory.table import name_hash

_MOST_NAMES = 4096
_SCOPES = {scope: number for number, scope in enumerate(SCOPES)}
_FALLBACKS = {reason: number for number, reason in enumerate(FALLBACKS)}


class _Hashes(dict[str, int]):
    """Hashes of names. Models and routes have names from the configuration: few, but new ones come with new routes."""

    def __missing__(self, name: str) -> int:
        if len(self) >= _MOST_NAMES:
            self.clear()
        found = self[name] = name_hash(name) if name else 0
        return found


class _Codes(dict[str, int]):
    """Numbers of the codes of attempts."""

    def __missing__(self, code: str) -> int:
        if len(self) >= _MOST_NAMES:
            self.clear()
        found = self[code] = attempt_code(code)
        return found


class RequestRecorder:
    """Writes the records of one worker."""

    def __init__(self, ring: RequestRing) -> None:
        self._ring = ring
        self._hashes = _Hashes()
        self._codes = _Codes()

    def record(self, exchange: Exchange, total_s: float) -> None:
        """Write the record of an exchange that took so many seconds. The indices are those of request_record.py."""
        ring = self._ring
        at = ring.begin()
        if at < 0:
            return  # this process is no worker
        words, doubles = ring.words, ring.doubles
        doubles[at + 1] = exchange.started
        doubles[at + 2] = total_s
        doubles[at + 3] = exchange.queue_s
        doubles[at + 4] = exchange.model_s
        flags = exchange.status & 0xFFFF
        if exchange.error is not None:
            flags |= CODE_NUMBERS.get(exchange.error, 0) << 16
        if exchange.rejection is not None:
            flags |= CODE_NUMBERS.get(exchange.rejection, 0) << 24
        words[at + 6] = self._hashes[exchange.model]
        words[at + 7] = self._hashes[exchange.route or ""]
        permit = exchange.permit
        if exchange.overload is not None:
            flags |= self._store_overload(at, exchange.overload) << 40
            if exchange.overload.limit_scope == "tenant" and exchange.caller is not None:
                words[at + 47] = self._hashes[exchange.caller.label]
        elif permit is not None:
            flags |= 1 << 40
            words[at + 8] = permit.limit << 32 | permit.in_flight
            words[at + 9] = UNKNOWN_MS
        words[at + 10] = store_id(words, at + 11, exchange.request_id)
        if exchange.attempts:
            flags |= self._store_attempts(at, exchange.attempts)
        if exchange.fallbacks:
            asked, _, reason = exchange.fallbacks[0]
            words[at + 47] = self._hashes[asked]
            flags |= _FALLBACKS[reason] << 52
        if exchange.full_fallbacks:
            flags |= min(exchange.full_fallbacks, MOST_FULL) << 44
        words[at + 5] = flags
        ring.commit(at)

    def _store_overload(self, at: int, overload: Overload) -> int:
        """Store what the request waited for or was rejected by. Returns the number of the scope."""
        expected_ms = overload.expected_wait_ms
        expected_ms = UNKNOWN_MS if expected_ms is None else min(expected_ms, UNKNOWN_MS - 1)
        words = self._ring.words
        words[at + 8] = overload.limit << 32 | overload.in_flight
        words[at + 9] = overload.ahead << 32 | expected_ms
        return _SCOPES[overload.limit_scope]

    def _store_attempts(self, at: int, attempts: Attempts) -> int:
        """Store the attempts, and what the last choice has seen. Returns the flags that tell of them."""
        words, doubles = self._ring.words, self._ring.doubles
        count = min(len(attempts), MOST_ATTEMPTS)
        place = at + 35
        for attempt in attempts if count == len(attempts) else attempts[-count:]:
            words[place] = attempt.endpoint_hash
            words[place + 1] = self._codes[attempt.code]
            doubles[place + 2] = attempt.took_s
            place += 3
        pool: PoolMembers = attempt.pool  # of the last one
        seen = attempt.seen
        words[at + 10] |= pool.size << 40
        number = len(seen)
        for place in range(number):
            words[at + 19 + place] = pool.hashes[place]
            words[at + 27 + place] = seen[place]
        return pool.policy << 32 | count << 48 | number << 56
