"""The history of `prefix`: which endpoints have lately got prompts that begin alike.

A model server keeps the KV cache of the prompts that it has seen, and saves the work for the part of a new prompt that
it has seen before. So a prompt goes where its longest known beginning went.

**Beginnings.** A prompt is hashed once, and the hash is noted at growing lengths (`lengths`): every 512 bytes up to
2 KiB, and then every quarter more. What is lost of a match by that is at most 512 bytes or a fifth, and a prompt of
64 KiB has 20 beginnings where fixed steps would have 128. A prompt that is shorter than the first length is noted as a
whole. The hash is a CRC of 32 bits: it goes on from one beginning to the next, where a digest would be copied for each,
and it is the same in every process. Whoever makes prompts with equal hashes only has them sent to one endpoint.

**The table** is a hash table in shared memory, of buckets of 8 words. One word holds a whole entry: which beginning (a
tag of 24 bits, beside the 14 that choose the bucket), which endpoint (24 bits of its URL's hash), and when it was used
last (15 bits, in units of 4 s). An entry takes the place of the one in its bucket that was used longest ago. A
beginning that many prompts share, such as a system prompt, has an entry for each of up to 4 endpoints.

**Races.** Nothing is locked, because an entry is one aligned word: it is read and stored whole. Of two workers that
store into one place of a bucket at the same time, one is forgotten. A worker that is killed has stored an entry or has
not. A choice is made later, under the lock, with the loads of that moment, among the endpoints that are available then;
an entry is a hint which of them to prefer. So whatever is lost, outdated, or equal by chance (at most once in 30,000
looks) costs a cache hit, and never a right response. An entry names the URL and not the id of its endpoint: an id that
is used for another URL matches nothing. And a model's entries are found by that model only, because its name and its
version are hashed into the tag.
"""

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from app.native import monotonic
from app.shared_memory.table import Layout, SharedTable

_BUCKET_BITS = 14
_WAYS = 8
LAYOUT = Layout(arrays={"prefixes": _WAYS << _BUCKET_BITS})
"""1 MiB; pages that were never used take no memory."""

DEFAULT_BYTES = 1 << 16
_STEP = 512
_FIXED_UP_TO = 2048
_MOST_ENDPOINTS = 4

_BUCKETS = (1 << _BUCKET_BITS) - 1
_SEEN_BITS = 15
_SEEN = (1 << _SEEN_BITS) - 1
_SEEN_UNIT_S = 4
_ENDPOINT = (1 << 24) - 1
_TAG_SHIFT = _SEEN_BITS + 24
_TAG = (1 << 24) - 1
_MASK = (1 << 64) - 1
_HASH_BYTES = 4
_SPREAD = 0x9E3779B97F4A7C15
"""Odd, and without a pattern of bits (2^64 divided by the golden ratio): it spreads 32 bits over 64."""


class Match(NamedTuple):
    """A beginning of the prompt that is known."""

    place: int
    """Which one, from the shortest."""
    endpoints: Sequence[int]
    """Those that have got it, as `endpoint_mark` has them."""


@lru_cache(maxsize=64)
def lengths(most: int) -> Sequence[int]:
    """Returns the lengths of the beginnings of prompts of which `most` bytes count."""
    found = list(range(_STEP, min(most, _FIXED_UP_TO + 1), _STEP))
    while found and found[-1] >= _FIXED_UP_TO and (following := found[-1] * 5 // 4) < most:
        found.append(following)
    return (*found, most)


def beginnings(prompt: Sequence[bytes | memoryview], most: int) -> bytes:
    """Returns the hashes of a prompt's beginnings, the shortest first, 4 bytes each; none for an empty prompt."""
    text = memoryview(prompt[0] if len(prompt) == 1 else b",".join([part[:most] for part in prompt]))
    size = len(text)
    if not size:
        return b""
    hashes = []
    start = found = 0
    for length in lengths(most):
        if length > size:
            break
        found = crc32(text[start:length], found)
        hashes.append(found)
        start = length
    return _format(len(hashes)).pack(*hashes) if hashes else _format(1).pack(crc32(text))


def endpoint_mark(url_hash: int) -> int:
    """Returns what an entry holds of an endpoint; never 0, so that no entry is."""
    return url_hash & _ENDPOINT or 1


class PrefixHistory:
    """The history of all models, in one process."""

    def __init__(self, table: SharedTable) -> None:
        self._entries = table.array("prefixes")

    def find(self, key: bytes, pool: int, below: int | None = None) -> Match | None:
        """Returns the longest known beginning of a prompt, of those before `below`; None if none is known.

        `key` is of `beginnings`. `pool` is a hash of the model and its version.
        """
        entries = self._entries
        hashes = _unpacked(key)
        place = len(hashes) if below is None else below
        while place > 0:
            place -= 1
            value = hashes[place]
            mixed = value * _SPREAD & _MASK ^ pool
            start = (mixed & _BUCKETS) * _WAYS
            tag = mixed >> _BUCKET_BITS & _TAG
            found = []
            for at in range(start, start + _WAYS):
                entry = entries[at]
                if entry >> _TAG_SHIFT == tag and entry:
                    found.append(entry >> _SEEN_BITS & _ENDPOINT)
            if found:
                return Match(place, found)
        return None

    def remember(self, key: bytes, pool: int, endpoint: int, match: Match | None) -> None:
        """Note that a prompt was sent to an endpoint, because of this match if there is one."""
        # What is shorter than the match is noted already, or its entry has gone because nobody used it.
        now = int(monotonic()) // _SEEN_UNIT_S & _SEEN
        for value in _unpacked(key)[match.place if match else 0 :]:
            self._store(value * _SPREAD & _MASK ^ pool, endpoint, now)

    def _store(self, mixed: int, endpoint: int, now: int) -> None:
        entries = self._entries
        start = (mixed & _BUCKETS) * _WAYS
        tag = mixed >> _BUCKET_BITS & _TAG
        ours = tag << 24 | endpoint
        oldest, age_of_oldest, ours_oldest, age_of_ours, same = start, -1, start, -1, 0
        for at in range(start, start + _WAYS):
            entry = entries[at]
            if entry >> _SEEN_BITS == ours:
                if entry & _SEEN != now:
                    entries[at] = ours << _SEEN_BITS | now
                return
            age = now - entry & _SEEN if entry else _SEEN + 1
            if age > age_of_oldest:
                oldest, age_of_oldest = at, age
            if entry and entry >> _TAG_SHIFT == tag:
                same += 1
                if age > age_of_ours:
                    ours_oldest, age_of_ours = at, age
        entries[ours_oldest if same >= _MOST_ENDPOINTS else oldest] = ours << _SEEN_BITS | now


def _unpacked(key: bytes) -> Sequence[int]:
    return _format(len(key) // _HASH_BYTES).unpack(key)


@lru_cache(maxsize=64)
def _format(count: int) -> Struct:
    return Struct(f"<{count}I")
