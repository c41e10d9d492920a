"""The rings of records, over bare forked processes that write, stop and die."""

import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from app.admission.limiter import Limiter
from app.shared_memory import request_ring
from app.shared_memory.request_ring import RECORD_BYTES, RECORD_WORDS, RECORDS, RequestRing
from tests.support.forks import Barrier, Parent, die_at

CONTENT = range(1, RECORD_WORDS)


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=1)
    yield parent
    parent.close()


def ring_of(parent: Parent, limiter: Limiter) -> RequestRing:
    """The rings as the worker of this limiter has them."""
    ring = RequestRing(parent.table)
    assert limiter._slot is not None
    ring.attach(limiter._slot)
    return ring


def write(ring: RequestRing, value: int) -> None:
    """Write a record that has this value in every word of its content."""
    at = ring.begin()
    for word in CONTENT:
        ring.words[at + word] = value
    ring.commit(at)


def found(ring: RequestRing) -> dict[int, list[int]]:
    """The values of the records that a reader takes, by slot; fails if one mixes two."""
    values: dict[int, list[int]] = {}
    places = [(slot, index) for slot in ring.slots() for index in range(len(ring.column(slot, 0)))]
    for (slot, _), record in zip(places, ring.copies(places), strict=True):
        if record is not None:
            words = memoryview(record).cast("q")
            assert len(set(words[1:])) == 1, "a torn record"
            values.setdefault(slot, []).append(words[1])
    return values


def test_every_process_reads_the_last_records_of_all(parent: Parent) -> None:
    """Two workers write more than their rings hold: any process has the last ones of each, and they outlive both."""
    count = RECORDS + 10

    def work(limiter: Limiter) -> None:
        ring = ring_of(parent, limiter)
        for value in range(1, count + 1):
            write(ring, value)

    for _ in range(2):
        parent.fork(work)
    parent.reap_all()
    records = found(RequestRing(parent.table))
    assert len(records) == 2
    for values in records.values():
        assert sorted(values) == list(range(count - RECORDS + 1, count + 1))


def test_successor_goes_on_where_a_worker_died(parent: Parent) -> None:
    """Whatever line it is killed before, no record is torn or lost, and the successor's follow."""
    died = 0
    for step in range(0, 130, 7):

        def work(limiter: Limiter) -> None:
            ring = ring_of(parent, limiter)
            write(ring, 1000 + step)
            sys.settrace(die_at(step, {request_ring.__file__, __file__}))
            write(ring, 2000 + step)
            sys.settrace(None)

        died += parent.reap(parent.fork(work)) == -signal.SIGKILL
    (values,) = found(RequestRing(parent.table)).values()
    assert [value for value in values if value < 2000] == [1000 + step for step in range(0, 130, 7)]
    assert died > 10


def test_record_that_is_being_written_is_none(parent: Parent) -> None:
    """A writer that is stopped in the middle of a record hides that one, and no other; it appears when it is whole."""
    middle = Barrier()

    def work(limiter: Limiter) -> None:
        ring = ring_of(parent, limiter)
        for value in range(1, RECORDS + 1):
            write(ring, value)
        at = ring.begin()  # in the place of the first one
        for word in CONTENT:
            ring.words[at + word] = RECORDS + 1
            if word == RECORD_WORDS // 2:
                middle.arrive()
        ring.commit(at)

    child = parent.fork(work)
    middle.wait_arrived(1)
    reader = RequestRing(parent.table)
    (values,) = found(reader).values()
    assert sorted(values) == list(range(2, RECORDS + 1))
    middle.lift(1)
    assert parent.reap(child) == 0
    (values,) = found(reader).values()
    assert sorted(values) == list(range(2, RECORDS + 2))
    middle.close()


@pytest.mark.slow
def test_reader_takes_no_torn_record(parent: Parent) -> None:
    """While two workers write as fast as they can, every record that is taken has one content."""
    ready = Barrier()

    def work(limiter: Limiter) -> None:
        ring = ring_of(parent, limiter)
        write(ring, 1)
        ready.arrive()
        value = 1
        while True:
            value += 1
            write(ring, value)

    children = [parent.fork(work) for _ in range(2)]
    ready.wait_arrived(2)
    ready.lift(2)
    reader = RequestRing(parent.table)
    taken = 0
    while taken < 50_000:
        taken += sum(map(len, found(reader).values()))
    for child in children:
        os.kill(child, signal.SIGKILL)
        assert parent.reap(child) == -signal.SIGKILL
    ready.close()


class TornReader(RequestRing):
    """Its second copy of the first record is interrupted in the middle, while the writer goes on."""

    def __init__(self, parent: Parent, writes: Callable[[], None]) -> None:
        super().__init__(parent.table)
        self._writes = writes
        self._made = 0

    def _copy(self, slot: int, index: int) -> bytes:
        before = super()._copy(slot, index)
        if index != 1:  # that of the record with the number 1
            return before
        self._made += 1
        if self._made == 2:
            self._writes()
        return before[: RECORD_BYTES // 2] + super()._copy(slot, index)[RECORD_BYTES // 2 :]


def test_record_that_changes_under_a_copy_is_none(parent: Parent) -> None:
    """A copy with the number and the first half of one record, and the second half of the next one in its place."""
    writer = ring_of(parent, parent.limiter())
    for value in range(1, RECORDS + 1):
        write(writer, value)
    reader = TornReader(parent, lambda: write(writer, RECORDS + 1))
    (values,) = found(reader).values()
    assert sorted(values) == list(range(2, RECORDS + 1))


def test_process_that_is_no_worker_writes_nothing(parent: Parent) -> None:
    """The arbiter has no ring."""
    ring = RequestRing(parent.table)
    assert ring.begin() == -1
    assert ring.slots() == []
