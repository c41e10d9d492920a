"""One worker leads."""

import mmap
import os
import signal
from collections.abc import Iterator

import pytest

from app import leader as leader_module
from app.leader import LEASE_MS, Leader
from app.limiter import Limiter
from tests.support.forks import Barrier, Parent


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
        self._gate = Barrier()
        self._answers, self._answer = os.pipe()
        self.pids = [parent.fork(self._work) for _ in range(count)]

    def ask(self, among: int) -> list[int]:
        """All of them ask at once; answers the process ids of those that lead."""
        self._gate.wait_arrived(among)
        self._gate.lift(among)
        answers = b""
        while len(answers) < 5 * among:
            answers += os.read(self._answers, 5 * among - len(answers))
        parts = [answers[n : n + 5] for n in range(0, len(answers), 5)]
        return [int.from_bytes(part[:4], "little") for part in parts if part[4]]

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert self._parent.reap(pid) == -signal.SIGKILL

    def close(self) -> None:
        for pid in list(self._parent.pids):
            self.kill(pid)
        self._gate.close()
        os.close(self._answers)
        os.close(self._answer)

    def _work(self, _: Limiter) -> None:
        leader = Leader(self._parent.table)
        while True:
            self._gate.arrive()
            os.write(self._answer, os.getpid().to_bytes(4, "little") + bytes([leader.leads()]))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leader_module, "now_ms", clock)
    return clock


@pytest.fixture
def workers(clock: Clock) -> Iterator[Workers]:
    parent = Parent(limit=1)
    workers = Workers(parent, 4)
    yield workers
    workers.close()
    parent.close()


def test_exactly_one_leads_and_goes_on_while_it_renews(workers: Workers, clock: Clock) -> None:
    """Four ask at once, every second, for much longer than a lease: it is the same one every time."""
    led = []
    for _ in range(30):
        led.append(workers.ask(4))
        clock.advance(1000)
    assert len(led[0]) == 1
    assert led == [led[0]] * 30


def test_another_leads_once_the_lease_of_a_killed_one_is_over(workers: Workers, clock: Clock) -> None:
    """Nobody leads before that, and exactly one after it."""
    (first,) = workers.ask(4)
    workers._gate.wait_arrived(4)
    workers.kill(first)
    workers._gate._ready_seen = 0  # type: ignore[attr-defined]
