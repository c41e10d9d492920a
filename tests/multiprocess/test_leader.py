"""One worker leads."""

import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.admission.limiter import Limiter
from app.shared_memory import leader as leader_module
from app.shared_memory.leader import LEASE_MS, Leader
from tests.support.forks import Barrier, Parent
from tests.support.router import until


class Clock:
    """One time for all processes, which goes only when told."""

    def __init__(self) -> None:
        self._now = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._now[0] = 1_000_000

    def __call__(self) -> int:
        return self._now[0]

    def advance(self, ms: int) -> None:
        self._now[0] += ms


class Workers:
    """Processes that ask whether they lead when they are told to."""

    def __init__(self, parent: Parent, count: int) -> None:
        self._parent = parent
        self._before, self._after = Barrier(), Barrier()
        self._answers, self._answer = os.pipe()
        for _ in range(count):
            parent.fork(self._work)
        self._before.wait_arrived(count)

    def ask(self) -> list[int]:
        """All that live ask at once; answers the process ids of those that lead."""
        living = len(self._parent.pids)
        self._before.lift(living)
        self._after.wait_arrived(living)
        self._after.lift(living)
        self._before.wait_arrived(living)
        answers = os.read(self._answers, 1000).split()
        assert len(answers) == 2 * living
        return [int(pid) for pid, leads in zip(answers[::2], answers[1::2], strict=True) if leads == b"True"]

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert self._parent.reap(pid) == -signal.SIGKILL

    def close(self) -> None:
        for pid in list(self._parent.pids):
            self.kill(pid)
        self._before.close()
        self._after.close()
        os.close(self._answers)
        os.close(self._answer)

    def _work(self, _: Limiter) -> None:
        leader = Leader(self._parent.table)
        while True:
            self._before.arrive()
            os.write(self._answer, f"{os.getpid()} {leader.leads()}\n".encode())
            self._after.arrive()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that a lease goes by."""
    clock = Clock()
    monkeypatch.setattr(leader_module, "now_ms", clock)
    return clock


@pytest.fixture
def workers(clock: Clock) -> Iterator[Workers]:
    """Four of them, forked after the clock was set."""
    parent = Parent(limit=1)
    workers = Workers(parent, 4)
    yield workers
    workers.close()
    parent.close()


def test_exactly_one_leads_and_goes_on_while_it_renews(workers: Workers, clock: Clock) -> None:
    """Four ask at once, every second, for much longer than a lease: it is the same one every time."""
    led = []
    for _ in range(30):
        led.append(workers.ask())
        clock.advance(1000)
    assert len(led[0]) == 1
    assert led == [led[0]] * 30


def test_another_leads_once_the_lease_of_a_killed_one_is_over(workers: Workers, clock: Clock) -> None:
    """Nobody leads before that, and exactly one after it, until nobody is left."""
    (leader,) = workers.ask()
    for _ in range(3):
        workers.kill(leader)
        clock.advance(LEASE_MS - 1)
        assert workers.ask() == []
        clock.advance(1)
        (successor,) = workers.ask()
        assert successor != leader
        leader = successor


def test_one_of_many_takes_a_lease_that_ran_out(workers: Workers, clock: Clock) -> None:
    """Each time all ask at once after the lease is over, exactly one leads."""
    for _ in range(100):
        assert len(workers.ask()) == 1
        clock.advance(LEASE_MS)


def test_lease_is_looked_at_and_taken_in_one_step(clock: Clock) -> None:
    """Whoever asks while another takes the lease waits for that, and then sees that it doesn't lead."""
    parent, asks = Parent(limit=1), Barrier()

    def late(_: Limiter) -> None:
        asks.arrive()
        assert not Leader(parent.table).leads()

    pid = parent.fork(late)
    asks.wait_arrived(1)
    with parent.table.lock:
        asks.lift(1)
        until(lambda: "futex" in Path(f"/proc/{pid}/wchan").read_text(), "the other waits for the lock")
        parent.table.cell("leader_pid")[0] = os.getpid()
        parent.table.cell("leader_until_ms")[0] = clock() + LEASE_MS
    parent.reap_all()
    assert Leader(parent.table).leads()
    asks.close()
    parent.close()


def test_process_killed_inside_the_lock_stops_nobody(clock: Clock) -> None:
    """SIGKILL between the two stores of a lease: the lock is free, and whoever asks next leads."""
    parent, inside = Parent(limit=1), Barrier()

    def victim(_: Limiter) -> None:
        with parent.table.lock:
            parent.table.cell("leader_pid")[0] = os.getpid()
            inside.arrive()

    pid = parent.fork(victim)
    inside.wait_arrived(1)
    os.kill(pid, signal.SIGKILL)
    signal.alarm(20)  # a lock that outlived its holder would hang here
    assert Leader(parent.table).leads()
    signal.alarm(0)
    assert parent.reap(pid) == -signal.SIGKILL
    inside.close()
    parent.close()


def test_frozen_leader_does_not_lead_when_it_comes_back(clock: Clock) -> None:
    """It slept for longer than its lease and another leads by now: it must see that and not take it back."""
    parent = Parent(limit=1)
    own, asked = Leader(parent.table), Barrier()
    assert own.leads()
    clock.advance(LEASE_MS)

    def successor(_: Limiter) -> None:
        assert Leader(parent.table).leads()
        asked.arrive()

    parent.fork(successor)
    asked.wait_arrived(1)
    assert not own.leads()
    asked.lift(1)
    parent.reap_all()
    clock.advance(LEASE_MS)
    assert own.leads()
    asked.close()
    parent.close()
