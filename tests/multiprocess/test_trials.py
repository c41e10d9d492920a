"""The circuits of endpoints over processes: one trial, whichever worker begins it."""

import mmap
import os
import signal

import pytest

from app.admission.limiter import Limiter
from app.config.route_schema import Ejection
from app.routing import outlier_detection
from app.routing.outlier_detection import Outcome, OutlierDetector
from tests.support.forks import Barrier, Parent

ID = 3
RULES = Ejection(consecutive_failures=3, base_s=5, max_share=1)
ROUNDS = 50


def _end(detector: OutlierDetector, outcome: Outcome, *, trial: bool = False) -> bool:
    return detector.end(ID, outcome, trial=trial, peers=[ID], rules=RULES)


def test_of_many_that_ask_at_once_exactly_one_gets_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 processes, 50 times half-open: one each time; whether it succeeded or died, all of them see it."""
    now = memoryview(mmap.mmap(-1, 8)).cast("q")  # one clock for all processes
    now[0] = 1_000_000
    monkeypatch.setattr(outlier_detection, "now_ms", lambda: now[0])
    parent, before, after = Parent(limit=1), Barrier(), Barrier()
    detector = OutlierDetector(parent.table)
    trials_read, trials_write = os.pipe()

    def work(_limiter: Limiter) -> None:
        for _ in range(ROUNDS):
            before.arrive()
            with parent.table.lock:
                if detector.is_available(ID, now[0]) and detector.begin(ID, now[0]):
                    os.write(trials_write, b".")
            after.arrive()

    for _ in range(8):
        parent.fork(work)
    for n in range(ROUNDS):
        if n % 5 == 0:
            assert [_end(detector, Outcome.FAILURE) for _ in range(3)] == [False, False, True]
        before.wait_arrived(8)
        available_at = detector.available_at(ID)
        assert available_at is not None
        now[0] = available_at
        before.lift(8)
        after.wait_arrived(8)
        assert len(os.read(trials_read, 100)) == 1
        if n % 5 == 4:  # the last of five; nobody ends the others, as if their workers had died
            assert not _end(detector, Outcome.SUCCESS, trial=True)
            now[0] += 5001
        after.lift(8)
    parent.reap_all()
    for barrier in (before, after):
        barrier.close()
    os.close(trials_read)
    os.close(trials_write)
    parent.close()


def test_failures_in_different_processes_add_up() -> None:
    """One failure in each of three processes ejects, once, and all see it."""
    parent, turn, seen = Parent(limit=1), Barrier(), Barrier()
    detector = OutlierDetector(parent.table)
    ejected_read, ejected_write = os.pipe()

    def work(_limiter: Limiter) -> None:
        turn.arrive()
        if _end(detector, Outcome.FAILURE):
            os.write(ejected_write, b".")
        seen.arrive()
        assert not detector.is_up(ID)

    for _ in range(3):
        parent.fork(work)
    turn.wait_arrived(3)
    turn.lift(3)
    seen.wait_arrived(3)
    assert not detector.is_up(ID)
    seen.lift(3)
    parent.reap_all()
    assert os.read(ejected_read, 10) == b"."
    for barrier in (turn, seen):
        barrier.close()
    os.close(ejected_read)
    os.close(ejected_write)
    parent.close()


def test_no_failure_is_lost_over_processes() -> None:
    """4 processes report 1000 failures each at once: 4000 in a row are counted."""
    parent, start = Parent(limit=1), Barrier()
    detector = OutlierDetector(parent.table)
    rules = Ejection(max_share=0)

    def work(_limiter: Limiter) -> None:
        start.arrive()
        for _ in range(1000):
            assert not detector.end(ID, Outcome.FAILURE, trial=False, peers=[ID], rules=rules)

    for _ in range(4):
        parent.fork(work)
    start.wait_arrived(4)
    start.lift(4)
    parent.reap_all()
    assert detector._records[ID].consecutive_failures == 4000
    start.close()
    parent.close()


def test_process_killed_while_it_reports_stops_nobody() -> None:
    """SIGKILL under the lock: the others go on to report and to eject."""
    parent, inside = Parent(limit=1), Barrier()
    detector = OutlierDetector(parent.table)

    def victim(_: Limiter) -> None:
        _end(detector, Outcome.FAILURE)
        with parent.table.lock:
            inside.arrive()

    pid = parent.fork(victim)
    inside.wait_arrived(1)
    os.kill(pid, signal.SIGKILL)
    signal.alarm(20)  # a lock that outlived its holder would hang here
    assert [_end(detector, Outcome.FAILURE) for _ in range(2)] == [False, True]
    signal.alarm(0)
    assert parent.reap(pid) == -signal.SIGKILL
    inside.close()
    parent.close()
