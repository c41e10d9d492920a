"""Bare forked processes over one shared table: the limiter without any server around it."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from gevent.hub import reinit

from app.admission import wait_queue as line
from app.admission.limiter import Limiter
from app.bootstrap import shared_table
from app.shared_memory.slots import Claim, Slots


@dataclass
class Parent:
    """The process that forks: the arbiter's part in these tests."""

    limit: int
    queue_size: int = 0
    timeout_s: float = 20.0
    pids: dict[int, Claim] = field(default_factory=dict)
    limiters: list[Limiter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = shared_table(self.limit, self.queue_size)
        self.slots = Slots(self.table, self.limit, self.queue_size)

    def close(self) -> None:
        """Close the eventfds, which are many; the table itself goes with its last view."""
        for door in self.limiters:
            if door._bell is not None:
                door._bell.stop()
        for fd in (self.table._fd, *self.table.eventfds):
            os.close(fd)

    def door(self) -> Limiter:
        """The limiter as a worker in this process would have it, with a slot of its own."""
        return self._door(self.slots.claim().slot)

    def _door(self, slot: int) -> Limiter:
        door = Limiter(self.table, self.limit, self.queue_size, self.timeout_s)
        door.attach(slot)
        self.limiters.append(door)
        return door

    def fork(self, work: Callable[[Limiter], None]) -> int:
        """Run `work` in a child with a slot of its own; answers the child's process id."""
        claim = self.slots.claim()
        pid = os.fork()
        if pid:
            self.pids[pid] = claim
            return pid
        try:
            signal.alarm(100)  # whatever goes wrong, no child outlives the test
            reinit()
            assert self.slots.occupy(claim)
            work(self._door(claim.slot))
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)

    def reap(self, pid: int) -> int:
        """Wait for a child, reclaim its slot as the arbiter does, and answer how it ended: exit code or -signal."""
        _, status = os.waitpid(pid, 0)
        self.slots.reclaim(self.pids.pop(pid))
        return os.waitstatus_to_exitcode(status)

    def reap_all(self) -> None:
        """Wait for every child; fail if one failed."""
        for pid in list(self.pids):
            assert self.reap(pid) == 0, "a child failed; see its traceback"

    def taken(self) -> int:
        """Permits taken, from the table itself."""
        with self.table.lock:
            return sum(self.table.column("inflight")) + line.WaitQueue(self.table, self.queue_size).granted


class Barrier:
    """Processes wait here until the parent lets all go at once."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._ready_read, self._ready_write = os.pipe()

    def arrive(self) -> None:
        """In a child: say so, and wait."""
        os.write(self._ready_write, b".")
        os.read(self._read, 1)

    def wait_arrived(self, count: int) -> None:
        """In the parent: until `count` children have arrived."""
        while count:
            count -= len(os.read(self._ready_read, count))

    def close(self) -> None:
        for fd in (self._read, self._write, self._ready_read, self._ready_write):
            os.close(fd)

    def lift(self, count: int) -> None:
        """In the parent: let `count` children go."""
        os.write(self._write, b"." * count)


class KernelCount:
    """An observer that the kernel keeps exact: a semaphore with as many tokens as may be inside.

    Entering takes a token without waiting and fails if there is none: then more were inside than allowed.
    """

    def __init__(self, limit: int) -> None:
        self._fd = os.eventfd(limit, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)

    def enter(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            raise AssertionError("more are inside than the cap allows") from None

    def leave(self) -> None:
        os.eventfd_write(self._fd, 1)

    def free(self) -> int:
        """Tokens left, without taking any."""
        with open(f"/proc/self/fdinfo/{self._fd}") as info:
            (count,) = (line.split()[1] for line in info if line.startswith("eventfd-count"))
        return int(count, 16)


def die_at(step: int, files: set[str]) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that SIGKILLs its process before the `step`-th line that runs of these files."""
    left = step

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace
