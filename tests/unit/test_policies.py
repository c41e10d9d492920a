"""The choice among endpoints: what each policy promises."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config.route_schema import Model, Version
from app.routing.policies import (
    POLICIES,
    Choice,
    below_bound,
    key_hash,
    least_inflight,
    p2c,
    prefix_hash,
    round_robin,
    session,
)
from app.shared_memory.table import name_hash

KEYS = [f"conversation {n}".encode() for n in range(10_000)]
LOADS = st.lists(st.integers(0, 50), min_size=1, max_size=12)


def _ids(count: int) -> list[int]:
    return [name_hash(f"http://10.0.0.{n}:8000") for n in range(count)]


def _ranking(key: bytes, ids: Sequence[int]) -> list[int]:
    """All endpoints as `session` takes them when those before are gone."""
    left, ranking = list(ids), []
    while left:
        ranking.append(left.pop(session(Choice(left, [0] * len(left), key=key))))
    return [ids.index(one) for one in ranking]


@pytest.mark.slow
@given(LOADS, st.integers(0, 2**32))
def test_least_inflight_takes_none_that_is_more_loaded_than_another(loads: list[int], turn: int) -> None:
    """Whatever the loads and the turn, the one chosen has the smallest load."""
    assert loads[least_inflight(Choice(_ids(len(loads)), loads, turn))] == min(loads)


def test_least_inflight_lets_equals_take_turns() -> None:
    """Of equally loaded endpoints each is taken once before any is taken twice."""
    chosen = [least_inflight(Choice(_ids(5), [2, 1, 3, 1, 1], turn)) for turn in range(100, 109)]
    assert [Counter(chosen[n : n + 3]) for n in (0, 3, 6)] == [Counter((1, 3, 4))] * 3


@given(st.lists(st.integers(0, 50), min_size=2, max_size=2))
def test_p2c_of_two_takes_the_less_loaded(loads: list[int]) -> None:
    """With two endpoints both are drawn, so the more loaded one is never taken."""
    assert loads[p2c(Choice(_ids(2), loads))] == min(loads)


def test_p2c_draws_two_different_ones_evenly() -> None:
    """Of three with different loads the most loaded is never taken, and the least in 2 of 3 draws; a single one is."""
    random.seed(7)
    taken = Counter(p2c(Choice(_ids(3), [5, 1, 3])) for _ in range(6000))
    assert taken[0] == 0
    assert abs(taken[1] - 4000) < 6 * sqrt(6000 * 2 / 9)
    assert p2c(Choice(_ids(1), [9])) == 0


def test_p2c_spreads_equals_evenly() -> None:
    """Of equally loaded endpoints none is preferred."""
    random.seed(7)
    taken = Counter(p2c(Choice(_ids(4), [1] * 4)) for _ in range(8000))
    assert all(abs(count - 2000) < 6 * sqrt(8000 * 3 / 16) for count in taken.values())
    assert len(taken) == 4


@pytest.mark.parametrize("policy", [least_inflight, p2c])
def test_load_counts_for_the_weight(policy: Callable[[Choice], int]) -> None:
    """Two endpoints of weights 3 and 1 hold 30 and 10 of 40 requests, at every moment to within a request."""
    loads = [0, 0]
    for sent in range(1, 41):
        loads[policy(Choice(_ids(2), loads, sent, weights=(3000, 1000)))] += 1
        assert abs(loads[0] - sent * 3 / 4) <= 1
    assert loads == [30, 10]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 1_000_000)), min_size=1, max_size=12), st.integers(0, 2**32)
)
def test_none_has_less_load_for_its_weight_than_the_chosen(pairs: list[tuple[int, int]], turn: int) -> None:
    """Whatever the loads, the weights and the turn; and with equal weights it is one of the least loaded."""
    loads, weights = [load for load, _ in pairs], [weight for _, weight in pairs]
    at = least_inflight(Choice(_ids(len(pairs)), loads, turn, weights=weights))
    assert all(loads[at] * weight <= load * weights[at] for load, weight in pairs)
    assert loads[least_inflight(Choice((), loads, turn, weights=[5] * len(loads)))] == min(loads)


@pytest.mark.parametrize("policy", [least_inflight, p2c])
def test_idle_endpoints_get_shares_by_weight(policy: Callable[[Choice], int]) -> None:
    """With one request at a time nothing is in flight at any choice, and weights hold all the same."""
    random.seed(7)
    taken = Counter(policy(Choice(_ids(2), [0, 0], turn, weights=(3000, 1000))) for turn in range(4000))
    assert abs(taken[0] - 3000) < 6 * sqrt(4000 * 3 / 16)


def test_equals_take_turns_in_small_numbers_too() -> None:
    """Of any 20 turns in a row, an endpoint of weight 1 beside one of weight 3 has 5, give or take 2."""
    turns = [least_inflight(Choice((), [0, 0], turn, weights=(3000, 1000))) for turn in range(500)]
    assert all(3 <= sum(turns[n : n + 20]) <= 7 for n in range(480))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 1000)), min_size=1, max_size=12), st.floats(1, 3))
def test_somebody_is_below_a_bound_by_weight(pairs: list[tuple[int, int]], load_bound: float) -> None:
    """The bound is a share by weight, so that the sum of the bounds is more than the sum of the loads."""
    loads, weights = [load for load, _ in pairs], [weight for _, weight in pairs]
    assert below_bound(Choice((), loads, load_bound=load_bound, weights=weights))


def test_round_robin_cycles_whatever_the_loads() -> None:
    """One after the other, from the first again after the last."""
    assert [round_robin(Choice(_ids(3), [9, 0, 4], turn)) for turn in range(3, 10)] == [0, 1, 2, 0, 1, 2, 0]


@given(st.binary(min_size=1), st.integers(1, 12), st.randoms(use_true_random=False), st.data())
def test_session_depends_on_key_and_endpoints_only(
    key: bytes, count: int, dice: random.Random, data: st.DataObject
) -> None:
    """The same key goes to the same endpoint whatever the loads, the turn and the order of endpoints."""
    ids = _ids(count)
    shuffled = dice.sample(ids, count)
    loads = data.draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
    one = ids[session(Choice(ids, [0] * count, 1, key))]
    other = shuffled[session(Choice(shuffled, loads, 2, key))]
    assert one == other


@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_session_spreads_keys_evenly(count: int) -> None:
    """10,000 keys over N endpoints: chi-squared stays within six of its own deviations of its mean."""
    ids = _ids(count)
    held = Counter(session(Choice(ids, [0] * count, key=key)) for key in KEYS)
    mean = len(KEYS) / count
    chi_squared = sum((held[at] - mean) ** 2 / mean for at in range(count))
    assert chi_squared < count - 1 + 6 * sqrt(2 * (count - 1))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_endpoint_that_comes_or_goes_moves_only_the_keys_it_wins_or_held(count: int) -> None:
    """Of N endpoints one is missing: exactly the keys that it holds when it is there are elsewhere, about 1 in N."""
    ids = _ids(count)
    for missing in ids[:3]:
        rest = [one for one in ids if one != missing]
        moved = 0
        for key in KEYS[:3000]:
            with_it = ids[session(Choice(ids, [0] * count, key=key))]
            without = rest[session(Choice(rest, [0] * (count - 1), key=key))]
            assert (with_it == without) == (with_it != missing)
            moved += with_it != without
        assert abs(moved - 3000 / count) < 6 * sqrt(3000 / count * (1 - 1 / count))


def test_keys_of_an_endpoint_that_goes_are_spread_over_all_others() -> None:
    """Not one neighbour inherits everything: each of the others gets about the same share."""
    ids = _ids(5)
    heirs = Counter(_ranking(key, ids)[1] for key in KEYS if session(Choice(ids, [0] * 5, key=key)) == 2)
    mean = sum(heirs.values()) / 4
    assert set(heirs) == {0, 1, 3, 4}
    assert all(abs(count - mean) < 6 * sqrt(mean) for count in heirs.values())


@pytest.mark.parametrize("policy", [session, prefix_hash])
def test_without_a_key_the_least_loaded_is_taken(policy: Callable[[Choice], int]) -> None:
    """A request that has no session or no prompt must not pile up with all others of its kind."""
    assert [policy(Choice(_ids(4), [3, 1, 1, 4], turn)) for turn in range(2)] == [1, 2]


@given(st.binary(min_size=1), LOADS, st.floats(1, 3))
def test_prefix_hash_takes_the_first_of_the_ranking_that_is_under_the_bound(
    key: bytes, loads: list[int], load_bound: float
) -> None:
    """Somebody is always under the bound; of those it is the key's highest ranked, and `session`'s if that has room."""
    ids = _ids(len(loads))
    bound = ceil(load_bound * (sum(loads) + 1) / len(loads))
    assert min(loads) < bound
    chosen = prefix_hash(Choice(ids, loads, key=key, load_bound=load_bound))
    assert loads[chosen] < bound
    assert chosen == next(at for at in _ranking(key, ids) if loads[at] < bound)
    if loads[first := session(Choice(ids, loads, key=key))] < bound:
        assert chosen == first


def test_prefix_hash_spills_one_after_the_other() -> None:
    """One prompt only, nobody answers: no endpoint ever has more than the bound allows, and the first fills first."""
    ids, loads = _ids(4), [0] * 4
    ranking = _ranking(b"You are a helpful", ids)
    for sent in range(400):
        chosen = prefix_hash(Choice(ids, loads, key=b"You are a helpful"))
        loads[chosen] += 1
        assert loads[chosen] <= ceil(1.25 * (sent + 1) / 4)
    by_rank = [loads[at] for at in ranking]
    assert by_rank == sorted(by_rank, reverse=True)
    assert by_rank[0] == 125
    assert by_rank[3] < 100


def test_prefix_hash_with_a_bound_of_one_is_even() -> None:
    """The smallest bound lets nobody have more than the mean, rounded up."""
    ids, loads = _ids(3), [0] * 3
    for _ in range(300):
        loads[prefix_hash(Choice(ids, loads, key=b"x", load_bound=1))] += 1
    assert loads == [100] * 3


def test_hashes_are_the_same_in_every_process() -> None:
    """Workers, restarts and pods must agree on who holds a key: nothing depends on Python's own seeded hashes."""
    assert key_hash(b"a") == 0x2F42665B399EF840
    assert [session(Choice(_ids(10), [0] * 10, key=key)) for key in (b"a", b"b", b"c", b"d")] == [9, 9, 9, 2]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_routed_by(name: str) -> None:
    """The policies here are those that a routes file may name, and each can choose of one."""
    assert POLICIES[name](Choice(_ids(1), [7], 5, b"key")) == 0
    assert Model(name="m", versions=(Version(),)).balancing in POLICIES


def test_few_requests_are_no_load() -> None:
    """Up to the floor nobody is sent elsewhere, however small the mean; from there on the bound holds."""
    ids, loads = _ids(4), [0] * 4
    first = _ranking(b"x", ids)[0]
    for sent in range(1, 13):
        loads[prefix_hash(Choice(ids, loads, key=b"x", load_floor=8))] += 1
        assert loads[first] == min(sent, 8)


@pytest.mark.slow
def test_prefix_hash_keeps_prompts_together_and_loads_bounded() -> None:
    """12 requests in flight over 3 endpoints, by the defaults: at least 95 % go where their prompt's others went."""
    route, chance = Model(name="m", versions=(Version(),)), random.Random(1)
    ids, loads = _ids(3), [0] * 3
    in_flight: list[int] = []
    at_home = total = 0
    for _ in range(20_000):
        key = b"prompt %d" % chance.randrange(300)
        if len(in_flight) == 12:
            loads[in_flight.pop(chance.randrange(12))] -= 1
        bound = max(route.load_floor, ceil(route.load_bound * (sum(loads) + 1) / 3))
        at = prefix_hash(Choice(ids, loads, 0, key, route.load_bound, route.load_floor))
        loads[at] += 1
        assert loads[at] <= bound
        in_flight.append(at)
        at_home += at == _ranking(key, ids)[0]
        total += 1
    assert at_home >= 0.95 * total
