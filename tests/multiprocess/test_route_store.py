"""Routes published to all workers: whole, in order, and through the death of the publisher."""

import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from app.admission.limiter import Limiter
from app.errors import RoutesError
from app.routing import endpoint_records, route_store
from app.routing.back_off import BackOffs
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_records import EndpointRecords
from app.routing.retry_budget import RetryBudgets
from app.routing.route_store import MAX_BYTES, RouteStore
from app.shared_memory import counters as counters_module
from app.shared_memory.counters import MAX_IDS, InflightCounters
from app.shared_memory.table import SharedTable
from tests.support.forks import Barrier, Parent, die_at

pytestmark = pytest.mark.slow


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=1)
    yield parent
    parent.close()


def _store(table: SharedTable) -> RouteStore:
    return RouteStore(table, InflightCounters(table), (EndpointRecords(table), BackOffs(table), RetryBudgets(table)))


def _document(number: int) -> bytes:
    """One that can be told from every other, and from half of it: it says its number at the start and everywhere."""
    mark = b"%08d" % number
    return mark * (1 + (number * 7919) % 2000)


def _is_whole(document: bytes) -> bool:
    return document == _document(int(document[:8]))


def test_what_is_published_is_read_in_every_process(parent: Parent) -> None:
    """A process forked before and one forked after both read it, and its generation."""
    store, forked, published = _store(parent.table), Barrier(), Barrier()
    assert store.generation == 0

    def before(_: Limiter) -> None:
        forked.arrive()
        assert _store(parent.table).read() == (1, b"routes")
        assert store.generation == 1

    parent.fork(before)
    forked.wait_arrived(1)
    assert store.publish(b"routes", ["a"])
    forked.lift(1)

    def after(_: Limiter) -> None:
        assert store.read() == (1, b"routes")
        published.arrive()

    parent.fork(after)
    published.wait_arrived(1)
    published.lift(1)
    parent.reap_all()


def test_equal_document_is_not_published_again(parent: Parent) -> None:
    """Nothing changed: no worker has to build its models anew. What was published before the last one counts as new."""
    store = _store(parent.table)
    assert store.publish(b"one", [])
    assert not store.publish(b"one", [])
    assert store.generation == 1
    assert store.publish(b"two", [])
    assert store.publish(b"one", [])
    assert store.read() == (3, b"one")


def test_document_that_is_too_large_is_refused(parent: Parent) -> None:
    """The largest fits, in either half; one byte more is refused and the old stays."""
    store = _store(parent.table)
    for byte in (b"x", b"y", b"z"):
        assert store.publish(byte * MAX_BYTES, ["a"])
        with pytest.raises(RoutesError, match=f"{MAX_BYTES + 1} bytes"):
            store.publish(byte * (MAX_BYTES + 1), ["b"])
        assert store.read()[1] == byte * MAX_BYTES
    with pytest.raises(KeyError):
        InflightCounters(parent.table).ids(["b"])


def test_too_many_names_publish_nothing(parent: Parent) -> None:
    """The old routes stay, and the lock is free."""
    store = _store(parent.table)
    store.publish(b"old", ["a"])
    with pytest.raises(RoutesError):
        store.publish(b"new", [str(n) for n in range(MAX_IDS + 1)])
    assert store.read() == (1, b"old")
    assert store.publish(b"newer", ["b"])


def test_readers_see_whole_documents_and_generations_grow(parent: Parent) -> None:
    """1000 documents of different lengths while three processes read: each read is one of them, none goes back.

    It is more than 1000 until each reader has seen ten: it could wait for a processor while all are written.
    """
    start, last = Barrier(), b"the last one"
    seen = memoryview(mmap.mmap(-1, 24)).cast("q")

    def reader(number: int, _: Limiter) -> None:
        store = _store(parent.table)
        start.arrive()
        generation, document = 0, b""
        while document != last:
            before = generation
            generation, document = store.read()
            assert generation >= before
            seen[number] += generation > before
            assert not generation or document in (_document(generation), last)

    def writer(_: Limiter) -> None:
        store = _store(parent.table)
        start.arrive()
        number = 0
        while number < 1000 or min(seen) < 10:
            number += 1
            assert store.publish(_document(number), ["a", f"b{number}"])
            os.sched_yield()
        store.publish(last, ["a"])

    for number in range(3):
        parent.fork(partial(reader, number))
    parent.fork(writer)
    start.wait_arrived(4)
    start.lift(4)
    parent.reap_all()


def test_two_publishers_lose_no_generation(parent: Parent) -> None:
    """Two processes publish at once, as when an upgrade's servers overlap: each store has its own generation."""
    start = Barrier()

    def writer(first: int) -> Callable[[Limiter], None]:
        def work(_: Limiter) -> None:
            store = _store(parent.table)
            start.arrive()
            for number in range(first, first + 300):
                assert store.publish(_document(number), ["a"])
                assert _is_whole(store.read()[1])

        return work

    parent.fork(writer(0))
    parent.fork(writer(1000))
    start.wait_arrived(2)
    start.lift(2)
    parent.reap_all()
    assert _store(parent.table).generation == 600


def test_new_name_with_a_used_id_knows_nothing_of_the_last(parent: Parent) -> None:
    """All ids have been used: a new endpoint is not unhealthy, and a new model's budget not spent, from before."""
    table = parent.table
    store, counters, health = _store(table), InflightCounters(table), EndpointHealth(EndpointRecords(table))
    store.publish(b"1", [f"old {n}" for n in range(MAX_IDS)])
    for shared_id in range(MAX_IDS):
        health.set_healthy(shared_id, healthy=False)
        assert RetryBudgets(table).of(shared_id, 0.5).try_withdraw()
    store.publish(b"2", ["old 0"])
    store.publish(b"3", ["old 0", "new"])
    ids = counters.ids(["old 0", "new"])
    assert not health.is_known(ids["new"])
    assert health.is_known(ids["old 0"])
    spent = table.array("spent_retry_milli")
    assert (spent[ids["new"]], spent[ids["old 0"]]) == (0, 1000)


OLD = ["old", "stays"]
NEW = ["new 0", "stays", "new 1"]
GONE = ["gone 0", "gone 1", "gone 2"]


def _death_at(parent: Parent, step: int) -> tuple[int, bytes]:
    """Kill a publisher before that line, check what it leaves behind, and return how it ended and what it published."""
    table = parent.table
    store, counters, health = _store(table), InflightCounters(table), EndpointHealth(EndpointRecords(table))
    store.publish(b"little", ["stays"])
    store.publish(b"before", [*GONE, "stays"])
    for shared_id in counters.ids(GONE).values():
        health.set_healthy(shared_id, healthy=False)
    store.publish(b"old", OLD)  # now the new ones will have to take ids of those gone
    generation = store.generation
    stays = counters.ids(OLD)["stays"]

    def victim(_: Limiter) -> None:
        own = _store(table)
        sys.settrace(die_at(step, {route_store.__file__, counters_module.__file__, endpoint_records.__file__}))
        own.publish(b"new and longer", NEW)
        sys.settrace(None)

    pid = parent.fork(victim)
    signal.alarm(20)  # a lock that outlived its holder would hang here
    ending = parent.reap(pid)
    left = store.read()
    assert left in ((generation, b"old"), (generation + 1, b"new and longer"))
    published = OLD if left[1] == b"old" else NEW
    assert counters.ids(published)["stays"] == stays, "every name of what is published has its place"
    store.publish(b"new and longer", NEW)
    signal.alarm(0)
    assert store.read() == (generation + 1, b"new and longer")
    ids = counters.ids(NEW)
    assert len(set(ids.values())) == len(NEW)
    assert ids["stays"] == stays
    assert not any(health.is_known(shared_id) for shared_id in ids.values()), "a new endpoint inherits nothing"
    return ending, left[1]


@pytest.mark.pure
@pytest.mark.pure
def test_death_of_the_publisher_before_any_line_leaves_old_or_new(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before every line of `publish` while ids are scarce: a whole document can be read, all its names
    have their ids, the lock is free, and publishing once more makes everything right."""
    monkeypatch.setattr(counters_module, "MAX_IDS", 5)
    for name in ("id_names", "id_generations"):
        start, _ = parent.table._arrays[name]
        monkeypatch.setitem(parent.table._arrays, name, (start, start + 5))
    step, left = 0, set[bytes]()
    while (ending := _death_at(parent, step))[0] != 0:  # 0: it lived to the end, so every line had its turn
        assert ending[0] == -signal.SIGKILL
        left.add(ending[1])
        step += 1
    assert step > 50, "the victim was not killed inside publish"
    assert left == {b"old", b"new and longer"}
