"""Balancing policies: which endpoint gets a request, as pure functions of what is known at the moment.

`loads` are the requests in flight with each available endpoint, over all workers. `weights` say how much load each of
them takes: a load counts divided by its weight, which is compared by cross-multiplication, in whole numbers. `hashes`
are hashes of their URLs, the same in every process. `turn` grows by one with every choice. Each policy returns an index
into `loads`.

Keys are spread by rendezvous hashing (Thaler and Ravishankar, 1998): every key ranks all endpoints by a hash of both,
and takes the first. An endpoint that comes or goes moves only the keys that it wins or held, about 1/N of them.
`prefix_hash` bounds the load as Mirrokni, Thorup and Zadimoghaddam do (consistent hashing with bounded loads, 2016): a
key goes to the first endpoint in its ranking whose load is below the bound.
"""

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import ceil

_MASK = (1 << 64) - 1
_GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""The fraction of the golden ratio, in 64 bits."""


class Choice:
    """What a policy decides by. `hashes` may be empty where there is no key."""

    __slots__ = ("hashes", "key", "load_bound", "load_floor", "loads", "turn", "weights")

    def __init__(  # noqa: PLR0913, PLR0917  # a record
        self,
        hashes: Sequence[int],
        loads: Sequence[int],
        turn: int = 0,
        key: bytes = b"",
        load_bound: float = 1.25,
        load_floor: int = 0,
        weights: Sequence[int] | None = None,
    ) -> None:
        self.hashes = hashes
        self.loads = loads
        self.turn = turn
        self.key = key
        self.load_bound = load_bound
        self.load_floor = load_floor
        self.weights = weights
        """None: all endpoints weigh the same."""


def least_inflight(choice: Choice) -> int:
    """Chooses the endpoint with the fewest requests in flight for its weight; equal ones take turns."""
    if choice.weights is not None:
        return _least_for_weight(choice.loads, choice.weights, choice.turn)
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
    """Chooses the one of two random endpoints (power of two choices) with less load for its weight."""
    loads, weights = choice.loads, choice.weights
    if len(loads) == 1:
        return 0
    one, other = random.sample(range(len(loads)), 2)
    if weights is None:
        return one if loads[one] <= loads[other] else other
    more = loads[one] * weights[other] - loads[other] * weights[one]
    if not more:  # by their weights: idle endpoints would else have equal shares
        return one if random.random() * (weights[one] + weights[other]) < weights[one] else other  # noqa: S311
    return one if more < 0 else other


def round_robin(choice: Choice) -> int:
    """Chooses the endpoints in turn."""
    return choice.turn % len(choice.loads)


def session(choice: Choice) -> int:
    """Chooses the first endpoint in the key's ranking; without a key, the least loaded."""
    if not choice.key:
        return least_inflight(choice)
    key = key_hash(choice.key)
    return max(range(len(choice.hashes)), key=lambda at: _score(key, choice.hashes[at]))


def prefix_hash(choice: Choice) -> int:
    """Chooses the first endpoint in the key's ranking below the bound; without a key, the least loaded."""
    if not choice.key:
        return least_inflight(choice)
    key = key_hash(choice.key)
    return max(below_bound(choice), key=lambda at: _score(key, choice.hashes[at]))


def below_bound(choice: Choice) -> list[int]:
    """Returns the endpoints whose load is below the bound: at least one."""
    # A candidate always exists: if every load were at or above its bound, and the bounds together are at least the sum
    # of the loads and 1, the loads would sum to more than they do.
    loads, weights, floor = choice.loads, choice.weights, choice.load_floor
    total = choice.load_bound * (sum(loads) + 1)
    if weights is None:
        bound = max(floor, ceil(total / len(loads)))
        return [at for at, load in enumerate(loads) if load < bound]
    share = total / sum(weights)
    return [at for at, load in enumerate(loads) if load < max(floor, ceil(share * weights[at]))]


POLICIES: dict[str, Callable[[Choice], int]] = {
    "least_inflight": least_inflight,
    "least_load": least_inflight,  # of the loads that load_reports.py estimates
    "p2c": p2c,
    "round_robin": round_robin,
    "session": session,
    "prefix": least_inflight,  # where no endpoint below the bound has got the prompt before (prefix_history.py)
    "prefix_hash": prefix_hash,
}


def least_of(choice: Choice, places: Sequence[int]) -> int:
    """Returns the endpoint with the least load for its weight among those at these places; equal ones take turns."""
    loads = [choice.loads[at] for at in places]
    weights = [1] * len(places) if choice.weights is None else [choice.weights[at] for at in places]
    return places[_least_for_weight(loads, weights, choice.turn)]


def _least_for_weight(loads: Sequence[int], weights: Sequence[int], turn: int) -> int:
    """Returns the endpoint with the least load for its weight. Equal ones take turns, as often as they weigh."""
    least = 0
    for at in range(1, len(loads)):
        if loads[at] * weights[least] < loads[least] * weights[at]:
            least = at
    equals = [at for at in range(len(loads)) if loads[at] * weights[least] == loads[least] * weights[at]]
    # The turns are spread over the weights, laid end to end, by multiples of the golden ratio: any few turns in a row
    # have about the right shares (Knuth, The Art of Computer Programming, section 6.4).
    point = (turn * _GOLDEN_RATIO & _MASK) * sum(weights[at] for at in equals) >> 64
    for at in equals:
        point -= weights[at]
        if point < 0:
            return at
    raise AssertionError("the point lies within the weights")


def key_hash(key: bytes) -> int:
    """Returns a 64-bit hash of the key, the same in every process."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def _score(key: int, endpoint: int) -> int:
    """Returns a 64-bit hash of both (the finalizer of splitmix64, Steele, Lea and Flood 2014)."""
    mixed = (key ^ endpoint) & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return mixed ^ mixed >> 31
