"""The record of one request: its words, and what they say.

A record has no names in it: models, routes and endpoints are 64-bit hashes, which are the same in every process. The id
of the request is there as far as it fits, and beside it the length and the CRC of all of it.
"""

from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from app import errors
from app.config import fallback_reasons
from app.config.route_values import POLICIES
from app.errors import LIMIT_SCOPES, Overload
from app.shared_memory.request_ring import RECORD_WORDS

MOST_ATTEMPTS = 4
"""The last ones of a request that had more."""
MOST_CANDIDATES = 8
MOST_FULL = 15
ID_BYTES = 64
UNKNOWN_MS = 0xFFFFFFFF

# The words of a record, by their indices. The number is that of request_ring.py. Times are doubles, in seconds.
NUMBER, STARTED, TOTAL, QUEUE, MODEL_TIME = 0, 1, 2, 3, 4
FLAGS = 5
"""From the lowest bit: 16 of the status; 8 each of the error, the rejection and the policy; 4 each of the scope of the
limit, how many fallbacks were full, how many attempts there are, and the reason of the first fallback; 8 of how many
candidates there are."""
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
ASKED = ATTEMPTS + 3 * MOST_ATTEMPTS
"""The model that was asked for, where a fallback took its place, or the tenant whose limit rejected the request;
written only then. That limit comes before any fallback."""
assert ASKED + 1 == RECORD_WORDS

_HEAD = Struct(f"qddddqqqQQQ{ID_BYTES}s")
_WORD_LISTS = [Struct(f"{count}q") for count in range(MOST_CANDIDATES + 1)]
_ATTEMPT = Struct("qqd")
_WORD = Struct("q")
_ID_BITS = 40
"""Of the word `ID`: the length and the CRC."""

CODES = ("", *sorted({error.code for error in vars(errors).values() if hasattr(error, "code")}))
"""The codes of errors, by their numbers in records."""
CODE_NUMBERS = {code: number for number, code in enumerate(CODES)}
_FIRST_CODE = 1000
"""Of the codes of attempts: smaller ones are the status of a response."""
SCOPES = ("", *LIMIT_SCOPES)
POLICY_NAMES = ("", *POLICIES)
POLICY_NUMBERS = {policy: number for number, policy in enumerate(POLICY_NAMES)}
FALLBACKS = ("", *fallback_reasons.REASONS)
assert len(FALLBACKS) <= 16
NUMBERED = f"{CODES} {SCOPES} {POLICY_NAMES} {FALLBACKS}"
"""What the numbers in records stand for. Programs that share records must agree on it."""


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


def is_rejection(flags: int) -> bool:
    """Whether admission rejected the request whose record has these flags."""
    return flags >> 24 & 0xFF != 0


def may_be_of(request_id: str, words_of_ids: Iterable[int]) -> list[int]:
    """Returns the indices of those of the words `ID` that the record of this request has, and perhaps others."""
    mask, wanted = (1 << _ID_BITS) - 1, len(request_id) | crc32(request_id.encode()) << 8
    return [index for index, word in enumerate(words_of_ids) if word & mask == wanted]


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
    asked: int
    """Hash of the model that was asked for, 0 if no fallback took its place."""
    fallback: str
    """Why, empty if none did."""
    full_fallbacks: int
    """How many were passed over because their own limits were reached; 15: so many at least."""
    tenant: int
    """Hash of the label of the tenant whose limit it met, 0 for any other limit."""

    def is_of(self, request_id: str) -> bool:
        """Whether this is the record of the request with this id."""
        return (
            request_id[:ID_BYTES] == self.id_beginning
            and len(request_id) == self.id_length
            and crc32(request_id.encode()) == self.id_checksum
        )


def read(record: bytes) -> RequestRecord:
    """Returns what a record says."""
    head = _HEAD.unpack_from(record)
    _, started, total_s, queue_s, model_s, flags, model, route, limit, wait, about_id, beginning = head
    error, rejection, policy, scope, attempts, candidates = (flags >> shift & 0xFF for shift in range(16, 64, 8))
    fallback, attempts = attempts >> 4, attempts & 0xF
    full_fallbacks, scope = scope >> 4, scope & 0xF
    expected_ms = wait & 0xFFFFFFFF
    expected = None if expected_ms == UNKNOWN_MS else expected_ms
    numbers = _WORD_LISTS[candidates]
    (asked,) = _WORD.unpack_from(record, ASKED * 8)
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
        asked if fallback else 0,
        FALLBACKS[fallback],
        full_fallbacks,
        asked if SCOPES[scope] == "tenant" and not fallback else 0,
    )


def _attempt(endpoint: int, code: int, seconds: float) -> Attempted:
    return Attempted(endpoint, CODES[code - _FIRST_CODE] if code >= _FIRST_CODE else str(code), seconds)
