"""Balancing policies: which endpoint gets a request, as pure functions of what is known at the moment.

`loads` are the requests in flight with each available endpoint, over all workers. `hashes` are hashes of their URLs,
the same in every process. `turn` grows by one with every choice. Each policy returns an index into `loads`.

Keys are spread by rendezvous hashing (Thaler and Ravishankar, 1998): every key ranks all endpoints by a hash of both,
and takes the first. An endpoint that comes or goes moves only the keys that it wins or held, about 1/N of them.
`prefix` bounds the load as Mirrokni, Thorup and Zadimoghaddam do (consistent hashing with bounded loads, 2016): a key
goes to the first endpoint in its ranking whose load is below the bound.
"""

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import ceil

_MASK = (1 << 64) - 1


class Choice:
    """What a policy decides by. `hashes` may be empty where there is no key."""

    __slots__ = ("hashes", "key", "load_bound", "load_floor", "loads", "turn")

    def __init__(  # noqa: PLR0913, PLR0917  # a record
        self,
        hashes: Sequence[int],
        loads: Sequence[int],
        turn: int = 0,
        key: bytes = b"",
        load_bound: float = 1.25,
        load_floor: int = 0,
    ) -> None:
        self.hashes = hashes
        self.loads = loads
        self.turn = turn
        self.key = key
        self.load_bound = load_bound
        self.load_floor = load_floor


def least_inflight(choice: Choice) -> int:
    """Chooses the endpoint with the fewest requests in flight; equal ones take turns."""
    loads = choice.loads
    count = len(loads)
    least = loads[0]
    equals = 0
    for at in range(count):
        if loads[at] < least:
            least = loads[at]
            equals = 0
        equals += loads[at] == least
    others = choice.turn % equals  # so many equals have their turn before
    for at in range(count):
        if loads[at] == least:
            if not others:
                return at
            others -= 1
    raise AssertionError("one of the equals has the turn")


def p2c(choice: Choice) -> int:
    """Chooses the less loaded of two random endpoints (power of two choices)."""
    loads = choice.loads
    if len(loads) == 1:
        return 0
    one, other = random.sample(range(len(loads)), 2)
    return one if loads[one] <= loads[other] else other


def round_robin(choice: Choice) -> int:
    """Chooses the endpoints in turn."""
    return choice.turn % len(choice.loads)


def session(choice: Choice) -> int:
    """Chooses the first endpoint in the key's ranking; without a key, the least loaded."""
    if not choice.key:
        return least_inflight(choice)
    key = key_hash(choice.key)
    return max(range(len(choice.hashes)), key=lambda at: _score(key, choice.hashes[at]))


def prefix(choice: Choice) -> int:
    """Chooses the first endpoint in the key's ranking below the bound; without a key, the least loaded."""
    if not choice.key:
        return least_inflight(choice)
    key = key_hash(choice.key)
    # A candidate always exists: if every load were at or above the bound, and the bound is at least the mean, the loads
    # would sum to more than they do.
    mean = (sum(choice.loads) + 1) / len(choice.loads)
    bound = max(choice.load_floor, ceil(choice.load_bound * mean))
    below = (at for at, load in enumerate(choice.loads) if load < bound)
    return max(below, key=lambda at: _score(key, choice.hashes[at]))


POLICIES: dict[str, Callable[[Choice], int]] = {
    "least_inflight": least_inflight,
    "p2c": p2c,
    "round_robin": round_robin,
    "session": session,
    "prefix": prefix,
}


def key_hash(key: bytes) -> int:
    """Returns a 64-bit hash of the key, the same in every process."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def _score(key: int, endpoint: int) -> int:
    """Returns a 64-bit hash of both (the finalizer of splitmix64, Steele, Lea and Flood 2014)."""
    mixed = (key ^ endpoint) & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return mixed ^ mixed >> 31
