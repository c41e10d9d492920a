"""The states of endpoints over processes: one probe, whoever asks."""

import mmap
import os
import signal

import pytest

from app.admission.limiter import Limiter
from app.config.route_schema import Ejection
from app.routing import outlier_detection as endpoints_module
from app.routing.outlier_detection import Outcome, OutlierDetector
from tests.support.forks import Barrier, Parent

PLACE = 3
RULES = Ejection(consecutive_failures=3, base_s=5, max_share=1)
ROUNDS = 50


def _end(states: OutlierDetector, outcome: Outcome, *, probe: bool = False) -> bool:
    return states.end(PLACE, outcome, probe=probe, peers=[PLACE], rules=RULES)


def test_of_many_that_ask_at_once_exactly_one_gets_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 processes, 50 times on probation: one each time; whether it succeeded or died, all of them see it."""
    now = memoryview(mmap.mmap(-1, 8)).cast("q")  # one clock for all processes
    now[0] = 1_000_000
    monkeypatch.setattr(endpoints_module, "now_ms", lambda: now[0])
    parent, before, after = Parent(limit=1), Barrier(), Barrier()
    states = OutlierDetector(parent.table)
    probes_read, probes_write = os.pipe()

    def work(_limiter: Limiter) -> None:
        for _ in range(ROUNDS):
            before.arrive()
            with parent.table.lock:
                if states.is_available(PLACE, now[0]) and states.begin(PLACE, now[0]):
                    os.write(probes_write, b".")
            after.arrive()

    for _ in range(8):
        parent.fork(work)
    for n in range(ROUNDS):
        if n % 5 == 0:
            assert [_end(states, Outcome.FAILURE) for _ in range(3)] == [False, False, True]
        before.wait_arrived(8)
        available_at = states.available_at(PLACE)
        assert available_at is not None
        now[0] = available_at
        before.lift(8)
        after.wait_arrived(8)
        assert len(os.read(probes_read, 100)) == 1
        if n % 5 == 4:  # the last of five; nobody ends the others, as if their workers had died
            assert not _end(states, Outcome.SUCCESS, probe=True)
            now[0] += 5001
        after.lift(8)
    parent.reap_all()
    for barrier in (before, after):
        barrier.close()
    os.close(probes_read)
    os.close(probes_write)
    parent.close()


def test_failures_in_different_processes_add_up() -> None:
    """One failure in each of three processes ejects, once, and all see it."""
    parent, turn, seen = Parent(limit=1), Barrier(), Barrier()
    states = OutlierDetector(parent.table)
    ejected_read, ejected_write = os.pipe()

    def work(_limiter: Limiter) -> None:
        turn.arrive()
        if _end(states, Outcome.FAILURE):
            os.write(ejected_write, b".")
        seen.arrive()
        assert not states.is_up(PLACE)

    for _ in range(3):
        parent.fork(work)
    turn.wait_arrived(3)
    turn.lift(3)
    seen.wait_arrived(3)
    assert not states.is_up(PLACE)
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
    states = OutlierDetector(parent.table)
    rules = Ejection(max_share=0)

    def work(_limiter: Limiter) -> None:
        start.arrive()
        for _ in range(1000):
            assert not states.end(PLACE, Outcome.FAILURE, probe=False, peers=[PLACE], rules=rules)

    for _ in range(4):
        parent.fork(work)
    start.wait_arrived(4)
    start.lift(4)
    parent.reap_all()
    field = PLACE * endpoints_module._FIELDS + endpoints_module._FAILURES
    assert parent.table.array("endpoints")[field] == 4000
    start.close()
    parent.close()


def test_process_killed_while_it_reports_stops_nobody() -> None:
    """SIGKILL under the lock: the others go on to report and to eject."""
    parent, inside = Parent(limit=1), Barrier()
    states = OutlierDetector(parent.table)

    def victim(_: Limiter) -> None:
        _end(states, Outcome.FAILURE)
        with parent.table.lock:
            inside.arrive()

    pid = parent.fork(victim)
    inside.wait_arrived(1)
    os.kill(pid, signal.SIGKILL)
    signal.alarm(20)  # a lock that outlived its holder would hang here
    assert [_end(states, Outcome.FAILURE) for _ in range(2)] == [False, True]
    signal.alarm(0)
    assert parent.reap(pid) == -signal.SIGKILL
    inside.close()
    parent.close()
