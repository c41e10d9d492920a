"""Counts by name over processes, and the places that names are counted at."""

import os
import signal
from collections.abc import Iterable, Iterator

import pytest

from app.admission.limiter import Limiter
from app.errors import RoutesError
from app.shared_memory.counters import MAX_IDS, InflightCounters
from app.shared_memory.table import SLOTS
from tests.support.forks import Barrier, Parent


class Ledger:
    """InflightCounters as whoever publishes sees it, with a count of what was cleared."""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.usage = InflightCounters(parent.table)
        self.usage.attach(parent.slots.claim().slot)
        self.published = 0
        self.cleared: list[int] = []

    def publish(self, names: Iterable[str]) -> dict[str, int]:
        """Give places to these names as the next publication does; answers them."""
        names = list(names)
        with self.parent.table.lock:
            self.usage.assign(names, self.published, self.cleared.append)
        self.published += 1
        return self.usage.places(names)

    def state(self) -> bytes:
        """Everything that is kept of the places."""
        return b"".join(self.parent.table.array(name).tobytes() for name in ("use", "use_names", "use_last"))


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Nothing counted and nothing published."""
    parent = Parent(limit=1)
    yield Ledger(parent)
    parent.close()


def _names(first: int, count: int) -> list[str]:
    return [f"http://10.0.0.{n}:8000" for n in range(first, first + count)]


def _row_of(limiter: Limiter) -> int:
    """The slot of the child that runs this."""
    assert limiter._slot is not None
    return limiter._slot


def test_totals_are_over_all_processes_and_by_place(ledger: Ledger) -> None:
    """Four processes count at two places: each sees the sum of all, and nothing of the other place."""
    parent, added, looked = ledger.parent, Barrier(), Barrier()
    one, other = ledger.publish(_names(0, 2)).values()

    def work(limiter: Limiter) -> None:
        usage = InflightCounters(parent.table)
        usage.attach(_row_of(limiter))
        for _ in range(1000):
            usage.add(one)
        for _ in range(3):
            usage.add(other)
        for _ in range(990):
            usage.leave(one)
        added.arrive()
        assert usage.total(one) == 40
        assert usage.total(other) == 12
        looked.arrive()

    for _ in range(4):
        parent.fork(work)
    added.wait_arrived(4)
    added.lift(4)
    looked.wait_arrived(4)
    assert (ledger.usage.total(one), ledger.usage.total(other)) == (40, 12)
    looked.lift(4)
    parent.reap_all()


def test_row_64_is_counted_too(ledger: Ledger) -> None:
    """With all slots claimed, the last row and the last place count."""
    while ledger.parent.slots.claim().slot < SLOTS - 1:
        pass
    last = InflightCounters(ledger.parent.table)
    last.attach(SLOTS - 1)
    last.add(MAX_IDS - 1)
    last.add(0)
    assert ledger.usage.total(MAX_IDS - 1) == ledger.usage.total(0) == 1
    assert ledger.usage.total(1) == ledger.usage.total(MAX_IDS - 2) == 0


def test_counts_of_a_killed_worker_go_when_its_slot_is_reclaimed_and_only_those(ledger: Ledger) -> None:
    """Of three that count, one is killed: its counts stand until its slot is reclaimed, those of the others stay."""
    parent, added, done = ledger.parent, Barrier(), Barrier()
    one, other = ledger.publish(_names(0, 2)).values()
    ledger.usage.add(one)

    def work(limiter: Limiter) -> None:
        usage = InflightCounters(parent.table)
        usage.attach(_row_of(limiter))
        for _ in range(10):
            usage.add(one)
            usage.add(other)
        added.arrive()
        done.arrive()

    first, victim, last = (parent.fork(work) for _ in range(3))
    added.wait_arrived(3)
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    assert (ledger.usage.total(one), ledger.usage.total(other)) == (31, 30)
    assert parent.reap(victim) == -signal.SIGKILL
    assert (ledger.usage.total(one), ledger.usage.total(other)) == (21, 20)
    added.lift(2)
    done.wait_arrived(2)
    done.lift(2)
    for pid in (first, last):
        assert parent.reap(pid) == 0
    assert (ledger.usage.total(one), ledger.usage.total(other)) == (1, 0)


def test_every_name_has_a_place_of_its_own(ledger: Ledger) -> None:
    """As many names as there are places: no two share one, and a name that stands twice in the routes has one."""
    names = _names(0, MAX_IDS)
    places = ledger.publish([*names, *names])
    assert sorted(places.values()) == list(range(MAX_IDS))
    assert sorted(ledger.cleared) == list(range(MAX_IDS))


def test_names_keep_their_places(ledger: Ledger) -> None:
    """What stays in the routes, and what comes back to them, is where it was; only the new is cleared."""
    before = ledger.publish(_names(0, 10))
    ledger.cleared.clear()
    after = ledger.publish(_names(5, 10))
    assert {name: after[name] for name in _names(5, 5)} == {name: before[name] for name in _names(5, 5)}
    assert set(after.values()).isdisjoint(before[name] for name in _names(0, 5))
    assert sorted(ledger.cleared) == sorted(after[name] for name in _names(10, 5))
    assert ledger.publish(_names(0, 10)) == before


def test_other_processes_find_the_same_places(ledger: Ledger) -> None:
    """Places are in the shared table, not in the process that gave them."""
    places = ledger.publish(_names(0, 50))

    def work(_: Limiter) -> None:
        assert InflightCounters(ledger.parent.table).places(_names(0, 50)) == places

    ledger.parent.fork(work)
    ledger.parent.reap_all()


def test_places_given_up_are_reused_last_and_the_oldest_first(ledger: Ledger) -> None:
    """Unused places first; then those given up longest ago, wherever they lie; never those of the published routes."""
    at = ledger.publish(_names(0, MAX_IDS - 1))
    ledger.publish(_names(0, 3))
    ledger.publish(_names(1, 2))
    ledger.publish(_names(2, 1))
    unused = ledger.publish(_names(1000, 1))
    assert set(unused.values()).isdisjoint(at.values())
    taken = ledger.publish(_names(2000, MAX_IDS - 4))
    assert set(taken.values()) == {at[name] for name in _names(3, MAX_IDS - 4)}
    for n in range(3):
        (place,) = ledger.publish(_names(3000 + n, 1)).values()
        assert place == at[_names(n, 1)[0]]


def test_place_where_somebody_is_counted_is_not_reused(ledger: Ledger) -> None:
    """A worker still has a request there: its place waits, and can be had once the request is over."""
    places = ledger.publish(_names(0, MAX_IDS))
    busy = places[_names(7, 1)[0]]
    ledger.usage.add(busy)
    ledger.publish(_names(7, 2))
    ledger.publish(_names(8, 1))
    before = ledger.state()
    with pytest.raises(RoutesError, match=str(MAX_IDS)):
        ledger.publish([*_names(8, 1), *_names(1000, MAX_IDS - 1)])
    assert ledger.state() == before
    more = ledger.publish([*_names(8, 1), *_names(1000, MAX_IDS - 2)])
    assert busy not in more.values()
    ledger.usage.leave(busy)
    assert ledger.publish([*more, *_names(5000, 1)])[_names(5000, 1)[0]] == busy


def test_places_of_the_published_routes_are_not_reused(ledger: Ledger) -> None:
    """Workers that haven't seen the new routes look up and count the old names: there must be room for both."""
    ledger.publish(_names(0, MAX_IDS - 10))
    before = ledger.state()
    with pytest.raises(RoutesError):
        ledger.publish(_names(1000, 11))
    assert ledger.state() == before
    ledger.publish(_names(1000, 10))
    assert set(ledger.usage.places(_names(0, MAX_IDS - 10)).values()) == set(range(MAX_IDS - 10))


def test_too_many_names_change_nothing(ledger: Ledger) -> None:
    """One more than there are places: refused, nothing written, nothing cleared."""
    ledger.publish(_names(0, 3))
    ledger.cleared.clear()
    before = ledger.state()
    with pytest.raises(RoutesError, match=str(MAX_IDS)):
        ledger.publish(_names(0, MAX_IDS + 1))
    assert ledger.state() == before
    assert not ledger.cleared
    assert ledger.publish(_names(0, MAX_IDS))
