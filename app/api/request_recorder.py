"""Writes the record of every inference request, when its exchange has ended: once, in this worker's ring.

It runs for every request, so it does as little as it can: numbers and hashes into one `struct.Struct`
(tests/bench/records.py measures it).
"""

from collections.abc import Callable
from zlib import crc32

from app.api.exchange import Exchange
from app.errors import Overload
from app.observability.request_record import (
    ATTEMPT,
    CODE_NUMBERS,
    MOST_ATTEMPTS,
    POLICY_NAMES,
    RECORD,
    SCOPES,
    UNKNOWN_MS,
    attempt_code,
    words,
)
from app.protocols.calls import Attempts
from app.routing.attempt import Attempt
from app.routing.candidates import NoAttempt
from app.shared_memory.request_ring import RequestRing
from app.shared_memory.table import name_hash

_MOST_NAMES = 4096
_SCOPES = {scope: number for number, scope in enumerate(SCOPES)}
_POLICIES = {policy: number for number, policy in enumerate(POLICY_NAMES)}
_NO_LIMIT = (0, 0, 0, 0, UNKNOWN_MS)
_NO_ATTEMPTS = (0, b"", 0, 0, 0, b"", b"")
_pack_attempt, _pack_into = ATTEMPT.pack, RECORD.pack_into


class _Hashes(dict[str, int]):
    """Hashes of names. Models and routes have names from the configuration: few, but new ones come with new routes."""

    def __missing__(self, name: str) -> int:
        if len(self) >= _MOST_NAMES:
            self.clear()
        found = self[name] = name_hash(name) if name else 0
        return found


def recorder(ring: RequestRing) -> Callable[[Exchange, float], None]:
    """Returns what writes the record of an exchange that took so many seconds."""
    hashes = _Hashes()
    begin, commit, block = ring.begin, ring.commit, ring.bytes

    def record(exchange: Exchange, total_s: float) -> None:
        at = begin()
        if at < 0:
            return
        request_id = exchange.request_id.encode()
        permit, attempts = exchange.permit, exchange.attempts
        if exchange.overload is not None:
            limit = _limit(exchange.overload)
        elif permit is not None:
            limit = (1, permit.limit, permit.in_flight, 0, UNKNOWN_MS)
        else:
            limit = _NO_LIMIT
        _pack_into(
            block,
            at,
            exchange.started,
            total_s,
            exchange.queue_s,
            exchange.model_s,
            exchange.status,
            CODE_NUMBERS.get(exchange.error or "", 0),
            CODE_NUMBERS.get(exchange.rejection or "", 0),
            hashes[exchange.model],
            hashes[exchange.route or ""],
            *limit,
            len(request_id),
            crc32(request_id),
            request_id,
            *(_tried(attempts) if attempts else _NO_ATTEMPTS),
        )
        commit()

    return record


def _limit(overload: Overload) -> tuple[int, int, int, int, int]:
    expected_ms = overload.expected_wait_ms
    expected_ms = UNKNOWN_MS if expected_ms is None else min(expected_ms, UNKNOWN_MS - 1)
    return _SCOPES[overload.limit_scope], overload.limit, overload.in_flight, overload.ahead, expected_ms


def _tried(attempts: Attempts) -> tuple[int, bytes, int, int, int, bytes, bytes]:
    """Returns the attempts of a request, and what the last choice was made among."""
    last = attempts[-1]
    pool, seen = last.pool, last.seen
    packed = _packed(last) if len(attempts) == 1 else b"".join(map(_packed, attempts[-MOST_ATTEMPTS:]))
    policy = _POLICIES[pool.policy]
    return min(len(attempts), 255), packed, policy, pool.size, len(seen), pool.hashes, words(seen)


def _packed(attempt: Attempt | NoAttempt) -> bytes:
    endpoint = attempt.endpoint
    return _pack_attempt(0 if endpoint is None else endpoint.url_hash, attempt_code(attempt.code), attempt.took_s)
