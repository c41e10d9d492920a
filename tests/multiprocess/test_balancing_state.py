"""What all workers share for balancing, when several write it at once, and when one is killed at any line of it."""

import signal
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from app.admission.limiter import Limiter
from app.native import now_ms
from app.routing import load_reports, prefix_history
from app.routing.load_formats import ServerLoad
from app.routing.load_reports import LoadReports, Reported
from app.routing.prefix_history import DEFAULT_BYTES, PrefixHistory, beginnings, endpoint_mark
from app.shared_memory.counters import InflightCounters
from tests.support.forks import Barrier, Parent, die_at

pytestmark = pytest.mark.slow

POOL, ID = 7, 3
OLD, NEW = endpoint_mark(12345), endpoint_mark(67890)


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=1)
    yield parent
    parent.close()


def test_workers_that_write_one_history_leave_only_what_was_written(parent: Parent) -> None:
    """Four workers store the same prompts for an endpoint each: every match names one of the four and nothing else."""
    keys = [beginnings((b"%06d" % number * 700,), DEFAULT_BYTES) for number in range(40)]
    marks = {endpoint_mark(1000 + number) for number in range(4)}
    barrier = Barrier()

    def work(mark: int, _limiter: Limiter) -> None:
        history = PrefixHistory(parent.table)
        barrier.arrive()
        for _ in range(5):
            for key in keys:
                match = history.find(key, POOL)
                assert match is None or set(match.endpoints) <= marks
                history.remember(key, POOL, mark, match)

    for mark in marks:
        parent.fork(partial(work, mark))
    barrier.wait_arrived(4)
    barrier.lift(4)
    parent.reap_all()
    barrier.close()
    history = PrefixHistory(parent.table)
    for key in keys:
        match = history.find(key, POOL)
        assert match is not None
        assert set(match.endpoints) <= marks


@pytest.mark.pure
def test_worker_that_is_killed_leaves_a_hint_or_none(parent: Parent) -> None:
    """Before whatever line: each beginning names the endpoint before, the new one, or both, and no third."""
    key = beginnings((b"a prompt" * 300,), DEFAULT_BYTES)
    PrefixHistory(parent.table).remember(key, POOL, OLD, None)
    died = set()
    for step in range(0, 200, 3):

        def work(_limiter: Limiter) -> None:
            sys.settrace(die_at(step, {prefix_history.__file__}))
            PrefixHistory(parent.table).remember(key, POOL, NEW, None)
            sys.settrace(None)

        died.add(parent.reap(parent.fork(work)))
        history = PrefixHistory(parent.table)
        for place in range(1, len(key) // 4 + 1):
            match = history.find(key, POOL, place)
            assert match is not None
            assert {OLD} <= set(match.endpoints) <= {OLD, NEW}
    assert died == {0, -signal.SIGKILL}


def test_report_of_a_killed_writer_is_whole_or_stale(parent: Parent) -> None:
    """Before whatever line: the old report, the new one, or none, of each figure."""
    counters = InflightCounters(parent.table)
    old, new = ServerLoad(10, 10, 0.25), ServerLoad(40, 40, 0.75)
    queues = {(0, 0), (10_000, 20_000), (40_000, 80_000)}
    died, seen = set(), set()
    for step in range(24):
        LoadReports(parent.table, counters).record(ID, old)

        def work(_limiter: Limiter) -> None:
            reports = LoadReports(parent.table, InflightCounters(parent.table))
            sys.settrace(die_at(step, {load_reports.__file__}))
            reports.record(ID, new)
            sys.settrace(None)

        died.add(parent.reap(parent.fork(work)))
        with parent.table.lock:
            got: Reported = LoadReports(parent.table, counters).read(ID, now_ms(), 60_000)
        assert (got.waiting, got.others) in queues
        assert got.cache in {0, 250, 750}
        seen.add((got.waiting, got.cache))
    assert died == {0, -signal.SIGKILL}
    assert len(seen) >= 4
