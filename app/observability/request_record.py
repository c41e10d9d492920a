"""The record of one request: its bytes, and what they say.

A record has no names in it: models, routes and endpoints are 64-bit hashes, which are the same in every process. The id
of the request is there as far as it fits, and beside it the length and the CRC of all of it.
"""

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from app import errors
from app.config.route_values import POLICIES
from app.errors import LIMIT_SCOPES, Overload
from app.shared_memory.request_ring import CONTENT_BYTES, NUMBER_BYTES, RECORD_BYTES

MOST_ATTEMPTS = 4
"""The last ones of a request that had more."""
MOST_CANDIDATES = 8
ID_BYTES = 64
UNKNOWN_MS = 0xFFFFFFFF
ATTEMPT = Struct("<qHf")
"""Hash of the endpoint, code, seconds."""
_HEAD = "dfffHBBq"
"""Arrival, in seconds of the monotonic clock; seconds in all, in the queue, in the model; status; codes of the error
and of the rejection; hash of the model."""
_LIMIT = "BIIII"
"""Scope, limit, in flight, ahead, expected wait in ms."""
_ID = f"BI{ID_BYTES}s"
"""Length, CRC, beginning."""
_ATTEMPTS = f"B{MOST_ATTEMPTS * ATTEMPT.size}s"
_CANDIDATES = f"BHB{8 * MOST_CANDIDATES}s{8 * MOST_CANDIDATES}s"
"""Policy, size of the pool, how many endpoints follow, their hashes, what the choice has seen of each."""
RECORD = Struct(f"<{_HEAD}q{_LIMIT}{_ID}{_ATTEMPTS}{_CANDIDATES}")
"""After the head: hash of the route."""
assert RECORD.size <= CONTENT_BYTES
_BEGINNING = Struct(f"<q{_HEAD}{RECORD_BYTES - NUMBER_BYTES - Struct(f'<{_HEAD}').size}x")
_WORDS = [Struct(f"<{count}q") for count in range(MOST_CANDIDATES + 1)]

CODES = ("", *sorted({error.code for error in vars(errors).values() if hasattr(error, "code")}))
"""The codes of errors, by their numbers in records."""
CODE_NUMBERS = {code: number for number, code in enumerate(CODES)}
_FIRST_CODE = 1000
"""Of the codes of attempts: smaller ones are the status of a response."""
SCOPES = ("", *LIMIT_SCOPES)
POLICY_NAMES = ("", *POLICIES)


def words(values: list[int]) -> bytes:
    """Returns up to `MOST_CANDIDATES` whole numbers as bytes."""
    return _WORDS[len(values)].pack(*values)


def attempt_code(code: str) -> int:
    """Returns the number of a status, or of an error's code; 0 for any other text."""
    return int(code) if code.isdecimal() else _FIRST_CODE + CODE_NUMBERS[code] if code in CODE_NUMBERS else 0


def checksum(request_id: str) -> int:
    """Returns what tells ids apart that begin alike."""
    return crc32(request_id.encode())


class Attempted(NamedTuple):
    """One attempt, or a choice that found no endpoint."""

    endpoint: int
    """Hash of its URL, 0: none."""
    outcome: str
    """The status of the response, or the code of what went wrong."""
    seconds: float


class Beginning(NamedTuple):
    """What a record begins with: enough to find those that are looked for."""

    number: int
    """0: there is no record."""
    started: float
    total_s: float
    queue_s: float
    model_s: float
    status: int
    error: int
    rejection: int
    model: int


class RequestRecord(NamedTuple):
    """What a record says."""

    started: float
    total_s: float
    queue_s: float
    model_s: float
    status: int
    error: str
    rejection: str
    model: int
    route: int
    overload: Overload | None
    """The limit that counts, None for a request that was never admitted or rejected."""
    id_length: int
    id_checksum: int
    id_beginning: str
    attempts: list[Attempted]
    policy: str
    pool_size: int
    candidates: list[tuple[int, int]]
    """Hash of the endpoint, and what the choice has seen of it (routing/candidates.py)."""

    def is_of(self, request_id: str) -> bool:
        """Whether this is the record of the request with this id."""
        return (
            request_id[:ID_BYTES] == self.id_beginning
            and len(request_id) == self.id_length
            and checksum(request_id) == self.id_checksum
        )


def beginnings(records: bytes) -> "list[Beginning]":
    """Returns the beginnings of these records, which stand one after the other."""
    return [Beginning(*values) for values in _BEGINNING.iter_unpack(records)]


def read(content: bytes | memoryview) -> RequestRecord:
    """Returns what the bytes of a record say."""
    values = RECORD.unpack_from(content)
    started, total_s, queue_s, model_s, status, error, rejection, model, route = values[:9]
    scope, limit, in_flight, ahead, expected_ms, id_length, id_checksum, id_beginning = values[9:17]
    count, attempts, policy, size, of_pool, hashes, seen = values[17:]
    expected = None if expected_ms == UNKNOWN_MS else expected_ms
    kept = min(count, MOST_ATTEMPTS)
    return RequestRecord(
        started,
        total_s,
        queue_s,
        model_s,
        status,
        CODES[error],
        CODES[rejection],
        model,
        route,
        Overload(SCOPES[scope], limit, in_flight, ahead, expected) if scope else None,
        id_length,
        id_checksum,
        id_beginning[:id_length].decode(errors="replace"),
        [_attempt(*ATTEMPT.unpack_from(attempts, at * ATTEMPT.size)) for at in range(kept)],
        POLICY_NAMES[policy],
        size,
        list(zip(_WORDS[of_pool].unpack_from(hashes), _WORDS[of_pool].unpack_from(seen), strict=True)),
    )


def _attempt(endpoint: int, code: int, seconds: float) -> Attempted:
    return Attempted(endpoint, CODES[code - _FIRST_CODE] if code >= _FIRST_CODE else str(code), seconds)
