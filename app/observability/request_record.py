"""The record of one request: its words, and what they say.

A record has no names in it: models, routes and endpoints are 64-bit hashes, which are the same in every process. The id
of the request is there as far as it fits, and beside it its length, and the CRC of one that does not fit.
"""

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from app import errors
from app.config.route_values import POLICIES
from app.errors import LIMIT_SCOPES, Overload
from app.shared_memory.request_ring import RECORD_BYTES, RECORD_WORDS

MOST_ATTEMPTS = 4
"""The last ones of a request that had more."""
MOST_CANDIDATES = 8
ID_BYTES = 64
UNKNOWN_MS = 0xFFFFFFFF

# The words of a record, by their indices. The first one is its number (request_ring.py). Times are doubles, in seconds.
STARTED, TOTAL, QUEUE, MODEL_TIME = 1, 2, 3, 4
FLAGS = 5
"""From the lowest bit: 16 of the status; 8 each of the error, the rejection, the policy, the scope of the limit, and
how many attempts and candidates there are."""
MODEL, ROUTE = 6, 7
LIMIT = 8
"""Above 32 bits the limit, below them the requests in flight."""
WAIT = 9
"""Above 32 bits the requests ahead, below them the expected wait in ms."""
ID = 10
"""8 bits of the length, 32 of the CRC, and the size of the pool. The id follows (`native.store_id`)."""
HASHES = ID + 1 + ID_BYTES // 8
"""Of the endpoints of the pool."""
SEEN = HASHES + MOST_CANDIDATES
"""What the choice has seen of each (routing/candidates.py)."""
ATTEMPTS = SEEN + MOST_CANDIDATES
"""Three words each: hash of the endpoint, code, seconds."""
assert ATTEMPTS + 3 * MOST_ATTEMPTS <= RECORD_WORDS

_HEAD = Struct(f"qddddqqqQQQ{ID_BYTES}s")
_BEGINNING = Struct(f"qdd16xqq{RECORD_BYTES - 56}x")
_WORD_LISTS = [Struct(f"{count}q") for count in range(MOST_CANDIDATES + 1)]
_ATTEMPT = Struct("qqd")

CODES = ("", *sorted({error.code for error in vars(errors).values() if hasattr(error, "code")}))
"""The codes of errors, by their numbers in records."""
CODE_NUMBERS = {code: number for number, code in enumerate(CODES)}
_FIRST_CODE = 1000
"""Of the codes of attempts: smaller ones are the status of a response."""
SCOPES = ("", *LIMIT_SCOPES)
POLICY_NAMES = ("", *POLICIES)
POLICY_NUMBERS = {policy: number for number, policy in enumerate(POLICY_NAMES)}


def attempt_code(code: str) -> int:
    """Returns the number of a status, or of an error's code; 0 for any other text."""
    return int(code) if code.isdecimal() else _FIRST_CODE + CODE_NUMBERS[code] if code in CODE_NUMBERS else 0


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
    flags: int
    model: int

    @property
    def is_rejected(self) -> bool:
        """Whether admission rejected the request."""
        return self.flags >> 24 & 0xFF != 0


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
    """The limit that counts, None for a request that came to no limit."""
    id_length: int
    id_checksum: int
    id_beginning: str
    attempts: list[Attempted]
    policy: str
    pool_size: int
    candidates: list[tuple[int, int]]
    """Hash of the endpoint, and what the choice has seen of it."""

    def is_of(self, request_id: str) -> bool:
        """Whether this is the record of the request with this id."""
        return (
            request_id[:ID_BYTES] == self.id_beginning
            and len(request_id) == self.id_length
            and (len(request_id) <= ID_BYTES or crc32(request_id.encode()) == self.id_checksum)
        )


def beginnings(records: bytes) -> list[Beginning]:
    """Returns the beginnings of these records, which stand one after the other."""
    return [Beginning(*values) for values in _BEGINNING.iter_unpack(records)]


def read(record: bytes | memoryview) -> RequestRecord:
    """Returns what a record says."""
    head = _HEAD.unpack_from(record)
    _, started, total_s, queue_s, model_s, flags, model, route, limit, wait, about_id, beginning = head
    error, rejection, policy, scope, attempts, candidates = (flags >> shift & 0xFF for shift in range(16, 64, 8))
    expected_ms = wait & 0xFFFFFFFF
    expected = None if expected_ms == UNKNOWN_MS else expected_ms
    numbers = _WORD_LISTS[candidates]
    hashes, seen = numbers.unpack_from(record, HASHES * 8), numbers.unpack_from(record, SEEN * 8)
    return RequestRecord(
        started,
        total_s,
        queue_s,
        model_s,
        flags & 0xFFFF,
        CODES[error],
        CODES[rejection],
        model,
        route,
        Overload(SCOPES[scope], limit >> 32, limit & 0xFFFFFFFF, wait >> 32, expected) if scope else None,
        about_id & 0xFF,
        about_id >> 8 & 0xFFFFFFFF,
        beginning[: about_id & 0xFF].decode(errors="replace"),
        [_attempt(*_ATTEMPT.unpack_from(record, (ATTEMPTS + 3 * at) * 8)) for at in range(attempts)],
        POLICY_NAMES[policy],
        about_id >> 40,
        list(zip(hashes, seen, strict=True)),
    )


def _attempt(endpoint: int, code: int, seconds: float) -> Attempted:
    return Attempted(endpoint, CODES[code - _FIRST_CODE] if code >= _FIRST_CODE else str(code), seconds)
