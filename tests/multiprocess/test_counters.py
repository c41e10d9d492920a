"""In-flight counters over processes, and the ids that names get."""

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
    """InflightCounters as whoever publishes sees it, with a count of what was reset."""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.counters = InflightCounters(parent.table)
        self.counters.attach(parent.slots.claim().slot)
        self.published = 0
        self.reset: list[int] = []

    def publish(self, names: Iterable[str]) -> dict[str, int]:
        """Give ids to these names as the next publication does. Returns them."""
        names = list(names)
        with self.parent.table.lock:
            self.counters.assign(names, self.published, self.reset.append)
        self.published += 1
        return self.counters.ids(names)

    def state(self) -> bytes:
        """Everything that is kept of the ids."""
        return b"".join(
            self.parent.table.array(name).tobytes() for name in ("inflight_by_id", "id_names", "id_generations")
        )


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


def test_first_names_get_their_ids_in_order(ledger: Ledger) -> None:
    """Operators name an endpoint by its id, and find the ids in the order of the routes file after every start."""
    names = _names(0, 9)[::-1]
    assert ledger.publish(names) == {name: number for number, name in enumerate(names)}


def test_totals_are_over_all_processes_and_by_place(ledger: Ledger) -> None:
    """Four processes count at two ids: each sees the sum of all, and nothing of the other place."""
    parent, added, looked = ledger.parent, Barrier(), Barrier()
    one, other = ledger.publish(_names(0, 2)).values()

    def work(limiter: Limiter) -> None:
        counters = InflightCounters(parent.table)
        counters.attach(_row_of(limiter))
        for _ in range(1000):
            counters.add(one)
        for _ in range(3):
            counters.add(other)
        for _ in range(990):
            counters.remove(one)
        added.arrive()
        assert counters.total(one) == 40
        assert counters.total(other) == 12
        looked.arrive()

    for _ in range(4):
        parent.fork(work)
    added.wait_arrived(4)
    added.lift(4)
    looked.wait_arrived(4)
    assert (ledger.counters.total(one), ledger.counters.total(other)) == (40, 12)
    looked.lift(4)
    parent.reap_all()


def test_row_64_is_counted_too(ledger: Ledger) -> None:
    """With all slots claimed, the last row and the last shared_id count."""
    while ledger.parent.slots.claim().slot < SLOTS - 1:
        pass
    last = InflightCounters(ledger.parent.table)
    last.attach(SLOTS - 1)
    last.add(MAX_IDS - 1)
    last.add(0)
    assert ledger.counters.total(MAX_IDS - 1) == ledger.counters.total(0) == 1
    assert ledger.counters.total(1) == ledger.counters.total(MAX_IDS - 2) == 0


def test_counts_of_a_killed_worker_go_when_its_slot_is_reclaimed_and_only_those(ledger: Ledger) -> None:
    """Of three that count, one is killed: its counts stand until its slot is reclaimed, those of the others stay."""
    parent, added, done = ledger.parent, Barrier(), Barrier()
    one, other = ledger.publish(_names(0, 2)).values()
    ledger.counters.add(one)

    def work(limiter: Limiter) -> None:
        counters = InflightCounters(parent.table)
        counters.attach(_row_of(limiter))
        for _ in range(10):
            counters.add(one)
            counters.add(other)
        added.arrive()
        done.arrive()

    first, victim, last = (parent.fork(work) for _ in range(3))
    added.wait_arrived(3)
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    assert (ledger.counters.total(one), ledger.counters.total(other)) == (31, 30)
    assert parent.reap(victim) == -signal.SIGKILL
    assert (ledger.counters.total(one), ledger.counters.total(other)) == (21, 20)
    added.lift(2)
    done.wait_arrived(2)
    done.lift(2)
    for pid in (first, last):
        assert parent.reap(pid) == 0
    assert (ledger.counters.total(one), ledger.counters.total(other)) == (1, 0)


def test_every_name_has_an_id_of_its_own(ledger: Ledger) -> None:
    """As many names as there are ids: no two share one, and a name that stands twice in the routes has one."""
    names = _names(0, MAX_IDS)
    ids = ledger.publish([*names, *names])
    assert sorted(ids.values()) == list(range(MAX_IDS))
    assert sorted(ledger.reset) == list(range(MAX_IDS))


def test_names_keep_their_ids(ledger: Ledger) -> None:
    """What stays in the routes, and what comes back to them, is where it was; only the new is reset."""
    before = ledger.publish(_names(0, 10))
    ledger.reset.clear()
    after = ledger.publish(_names(5, 10))
    assert {name: after[name] for name in _names(5, 5)} == {name: before[name] for name in _names(5, 5)}
    assert set(after.values()).isdisjoint(before[name] for name in _names(0, 5))
    assert sorted(ledger.reset) == sorted(after[name] for name in _names(10, 5))
    assert ledger.publish(_names(0, 10)) == before


def test_other_processes_find_the_same_ids(ledger: Ledger) -> None:
    """Places are in the shared table, not in the process that gave them."""
    ids = ledger.publish(_names(0, 50))

    def work(_: Limiter) -> None:
        assert InflightCounters(ledger.parent.table).ids(_names(0, 50)) == ids

    ledger.parent.fork(work)
    ledger.parent.reap_all()


def test_ids_given_up_are_reused_last_and_the_oldest_first(ledger: Ledger) -> None:
    """Unused ids first; then those given up longest ago, wherever they lie; never those of the published routes."""
    at = ledger.publish(_names(0, MAX_IDS - 1))
    ledger.publish(_names(0, 3))
    ledger.publish(_names(1, 2))
    ledger.publish(_names(2, 1))
    unused = ledger.publish(_names(1000, 1))
    assert set(unused.values()).isdisjoint(at.values())
    taken = ledger.publish(_names(2000, MAX_IDS - 4))
    assert set(taken.values()) == {at[name] for name in _names(3, MAX_IDS - 4)}
    for n in range(3):
        (shared_id,) = ledger.publish(_names(3000 + n, 1)).values()
        assert shared_id == at[_names(n, 1)[0]]


def test_id_where_somebody_is_counted_is_not_reused(ledger: Ledger) -> None:
    """A worker still has a request there: its shared_id waits, and can be had once the request is over."""
    ids = ledger.publish(_names(0, MAX_IDS))
    busy = ids[_names(7, 1)[0]]
    ledger.counters.add(busy)
    ledger.publish(_names(7, 2))
    ledger.publish(_names(8, 1))
    before = ledger.state()
    with pytest.raises(RoutesError, match=str(MAX_IDS)):
        ledger.publish([*_names(8, 1), *_names(1000, MAX_IDS - 1)])
    assert ledger.state() == before
    more = ledger.publish([*_names(8, 1), *_names(1000, MAX_IDS - 2)])
    assert busy not in more.values()
    ledger.counters.remove(busy)
    assert ledger.publish([*more, *_names(5000, 1)])[_names(5000, 1)[0]] == busy


def test_ids_of_the_published_routes_are_not_reused(ledger: Ledger) -> None:
    """Workers that haven't seen the new routes look up and count the old names: there must be room for both."""
    ledger.publish(_names(0, MAX_IDS - 10))
    before = ledger.state()
    with pytest.raises(RoutesError):
        ledger.publish(_names(1000, 11))
    assert ledger.state() == before
    ledger.publish(_names(1000, 10))
    assert set(ledger.counters.ids(_names(0, MAX_IDS - 10)).values()) == set(range(MAX_IDS - 10))


def test_too_many_names_change_nothing(ledger: Ledger) -> None:
    """One more than there are ids: refused, nothing written, nothing reset."""
    ledger.publish(_names(0, 3))
    ledger.reset.clear()
    before = ledger.state()
    with pytest.raises(RoutesError, match=str(MAX_IDS)):
        ledger.publish(_names(0, MAX_IDS + 1))
    assert ledger.state() == before
    assert not ledger.reset
    assert ledger.publish(_names(0, MAX_IDS))
