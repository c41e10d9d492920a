"""The circuits of endpoints over processes: one trial, whichever worker begins it."""

import dis
import mmap
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import pytest

from app.admission.limiter import Limiter
from app.config.route_schema import Ejection
from app.native import now_ms
from app.routing import endpoint_records, first_byte, outlier_detection
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_records import EndpointRecords
from app.routing.outlier_detection import Circuit, Ended, Outcome, OutlierDetector, PoolRules
from tests.support.forks import Barrier, Parent

ID = 3
RULES = Ejection(consecutive_failures=3, base_s=5, max_share=1)
ROUNDS = 50


def _end(detector: OutlierDetector, outcome: Outcome, *, trial: bool = False) -> bool:
    return detector.end(ID, Ended(outcome, trial), PoolRules([ID], RULES))


@pytest.mark.pure
def test_of_many_that_ask_at_once_exactly_one_gets_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 processes, 50 times half-open: one each time; whether it succeeded or died, all of them see it."""
    now = memoryview(mmap.mmap(-1, 8)).cast("q")  # one clock for all processes
    now[0] = 1_000_000
    monkeypatch.setattr(outlier_detection, "now_ms", lambda: now[0])
    parent, before, after = Parent(limit=1), Barrier(), Barrier()
    records = EndpointRecords(parent.table)
    detector, health = OutlierDetector(records), EndpointHealth(records)
    trials_read, trials_write = os.pipe()

    def work(_limiter: Limiter) -> None:
        for _ in range(ROUNDS):
            before.arrive()
            with parent.table.lock:
                if health.is_available(ID, now[0]) and detector.begin(ID, now[0]):
                    os.write(trials_write, b".")
            after.arrive()

    for _ in range(8):
        parent.fork(work)
    for n in range(ROUNDS):
        if n % 5 == 0:
            assert [_end(detector, Outcome.FAILURE) for _ in range(3)] == [False, False, True]
        before.wait_arrived(8)
        now[0] = health.unavailable_until(ID)
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
    records = EndpointRecords(parent.table)
    detector, health = OutlierDetector(records), EndpointHealth(records)
    ejected_read, ejected_write = os.pipe()

    lasting = PoolRules([ID], Ejection(consecutive_failures=3, base_s=60, max_share=1))

    def work(_limiter: Limiter) -> None:
        turn.arrive()
        if detector.end(ID, Ended(Outcome.FAILURE), lasting):
            os.write(ejected_write, b".")
        seen.arrive()
        assert not health.is_available(ID, now_ms())

    for _ in range(3):
        parent.fork(work)
    turn.wait_arrived(3)
    turn.lift(3)
    seen.wait_arrived(3)
    assert not health.is_available(ID, now_ms())
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
    records = EndpointRecords(parent.table)
    detector = OutlierDetector(records)
    rules = Ejection(max_share=0)

    def work(_limiter: Limiter) -> None:
        start.arrive()
        for _ in range(1000):
            assert not detector.end(ID, Ended(Outcome.FAILURE), PoolRules([ID], rules))

    for _ in range(4):
        parent.fork(work)
    start.wait_arrived(4)
    start.lift(4)
    parent.reap_all()
    assert records.consecutive_failures[ID] == 4000
    start.close()
    parent.close()


def test_process_killed_while_it_reports_stops_nobody() -> None:
    """SIGKILL under the lock: the others go on to report and to eject."""
    parent, inside = Parent(limit=1), Barrier()
    detector = OutlierDetector(EndpointRecords(parent.table))

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


NOW_MS = 50_000_000
_FILES = {outlier_detection.__file__, endpoint_records.__file__, first_byte.__file__}


def _die_at_store(step: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that SIGKILLs its process before the `step`-th line or store to a field of outlier detection."""
    left = step

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in _FILES:
            return None
        frame.f_trace_opcodes = True
        stores = event == "opcode" and dis.opname[frame.f_code.co_code[frame.f_lasti]] == "STORE_SUBSCR"
        if stores or event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


class _Change(NamedTuple):
    """What a killed process was doing, and what it began with."""

    fields: dict[str, int]
    act: Callable[[EndpointRecords, OutlierDetector], object]
    before: Circuit
    after: Circuit


def _begin(records: EndpointRecords, detector: OutlierDetector) -> None:
    with records.lock:
        assert detector.begin(ID, NOW_MS)


def _reset(records: EndpointRecords, _: OutlierDetector) -> None:
    with records.lock:
        records.reset(ID)


_LATELY_CLOSED = {"consecutive_failures": 2, "ejections": 2, "closed_at_ms": NOW_MS - 1, "window_failures": 2,
                  "window_requests": 2, "window": NOW_MS // 1000 // 10}  # fmt: skip
_EJECTED = {"circuit": Circuit.OPEN, "unavailable_until_ms": NOW_MS, "ejections": 1}
_ON_TRIAL = {"circuit": Circuit.HALF_OPEN, "unavailable_until_ms": NOW_MS + 10_000, "ejections": 1}

CHANGES = {
    "first ejection": _Change(
        {"consecutive_failures": 2}, lambda _, d: _end(d, Outcome.FAILURE), Circuit.CLOSED, Circuit.OPEN
    ),
    "next ejection": _Change(_LATELY_CLOSED, lambda _, d: _end(d, Outcome.FAILURE), Circuit.CLOSED, Circuit.OPEN),
    "trial begins": _Change(_EJECTED, _begin, Circuit.OPEN, Circuit.HALF_OPEN),
    "trial succeeds": _Change(
        _ON_TRIAL, lambda _, d: _end(d, Outcome.SUCCESS, trial=True), Circuit.HALF_OPEN, Circuit.CLOSED
    ),
    "trial fails": _Change(
        _ON_TRIAL, lambda _, d: _end(d, Outcome.FAILURE, trial=True), Circuit.HALF_OPEN, Circuit.OPEN
    ),
    "trial is abandoned": _Change(
        _ON_TRIAL, lambda _, d: _end(d, Outcome.ABANDONED, trial=True), Circuit.HALF_OPEN, Circuit.HALF_OPEN
    ),
    "client leaves a silent endpoint": _Change(
        {"consecutive_failures": 2},
        lambda _, d: d.end(ID, Ended(Outcome.UNANSWERED, contacted_ms=NOW_MS - 600), PoolRules([ID], RULES)),
        Circuit.CLOSED,
        Circuit.OPEN,
    ),
    "first byte is learned": _Change(
        {"first_byte_us": 1000},
        lambda _, d: d.end(ID, Ended(Outcome.SUCCESS, first_byte_us=2000), PoolRules([ID], RULES)),
        Circuit.CLOSED,
        Circuit.CLOSED,
    ),
    "reset": _Change(_ON_TRIAL, _reset, Circuit.HALF_OPEN, Circuit.CLOSED),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.pure
def test_death_before_any_store_leaves_a_record_that_the_rules_apply_to(
    change: _Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before every line and every store of a change: no closed circuit has a time until which it is
    unavailable, the circuit is the old or the new one, and a success in a bounded time brings the endpoint back.
    """
    now = NOW_MS
    monkeypatch.setattr(outlier_detection, "now_ms", lambda: now)
    parent = Parent(limit=1)
    records = EndpointRecords(parent.table)
    detector, health = OutlierDetector(records), EndpointHealth(records)

    def victim(_limiter: Limiter) -> None:
        sys.settrace(_die_at_store(step))
        change.act(records, detector)
        sys.settrace(None)

    step, ending, circuits = 0, -signal.SIGKILL, []
    while ending != 0:  # 0: it lived to the end, so every store had its turn
        now = NOW_MS
        records.reset(ID)
        for name, value in change.fields.items():
            getattr(records, name)[ID] = value
        ending = parent.reap(parent.fork(victim))
        assert ending in (0, -signal.SIGKILL)
        circuits.append(detector.circuit(ID))
        assert records.circuit[ID] != Circuit.CLOSED or records.unavailable_until_ms[ID] == 0
        assert records.window_failures[ID] <= records.window_requests[ID]
        now = max(now, health.unavailable_until(ID))
        assert now <= NOW_MS + 20_000, "the third ejection lasts 20 seconds; nothing here lasts longer"
        with parent.table.lock:
            assert health.is_available(ID, now)
            trial = detector.begin(ID, now)
        assert not _end(detector, Outcome.SUCCESS, trial=trial)
        assert detector.circuit(ID) is Circuit.CLOSED
        assert health.is_available(ID, now)
        step += 1
    assert step >= 5, "the victim was not killed inside the change"
    assert (circuits[0], circuits[-1]) == (change.before, change.after)
    assert set(circuits) == {change.before, change.after}
    assert circuits == sorted(circuits, key=lambda circuit: circuit is change.after), "it changes by one store"
    parent.close()
