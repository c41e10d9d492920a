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

from app.admission.limiter import Limiter
from app.admission.permit import Permit, Ticket
from app.admission.tenant_limit import COUNTERS
from app.bootstrap import shared_table
from app.shared_memory.counters import InflightCounters
from app.shared_memory.slots import Claim, Slots

_open: "list[Parent]" = []


def close_all() -> None:
    """Close every parent that a test left open."""
    for parent in _open:
        parent.close()


@dataclass(eq=False)
class Parent:
    """The process that forks: it takes the arbiter's part in these tests."""

    limit: int
    queue_size: int = 0
    pids: dict[int, Claim] = field(default_factory=dict)
    limiters: list[Limiter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = shared_table(self.limit, self.queue_size)
        self.unattached = Limiter(self.table, self.queue_size)
        self.unattached.set_limit(self.limit)
        tenants = InflightCounters(self.table, COUNTERS)
        self.slots = Slots(self.table, (InflightCounters(self.table), tenants, self.unattached))
        _open.append(self)

    def close(self) -> None:
        """Close the eventfds, which are many; the table itself goes with its last view. May be called again."""
        if self not in _open:
            return
        _open.remove(self)
        for limiter in self.limiters:
            if limiter._watcher is not None:
                limiter._watcher.stop()
        for fd in (self.table._fd, *self.table.eventfds):
            os.close(fd)

    def limiter(self) -> Limiter:
        """Returns a limiter as a worker in this process would have it, with a slot of its own."""
        return self.limiter_of(self.slots.claim().slot)

    def limiter_of(self, slot: int) -> Limiter:
        """Returns a limiter that is attached to this slot."""
        limiter = Limiter(self.table, self.queue_size)
        limiter.attach(slot)
        self.limiters.append(limiter)
        return limiter

    def fork(self, work: Callable[[Limiter], None]) -> int:
        """Run `work` in a child with a slot of its own. Returns the child's process id."""
        claim = self.slots.claim()
        pid = os.fork()
        if pid:
            self.pids[pid] = claim
            return pid
        try:
            signal.alarm(100)  # whatever goes wrong, no child outlives the test
            reinit()
            assert self.slots.occupy(claim)
            work(self.limiter_of(claim.slot))
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)

    def reap(self, pid: int) -> int:
        """Wait for a child, reclaim its slot as the arbiter does, and return how it ended: exit code or -signal."""
        _, status = os.waitpid(pid, 0)
        self.slots.reclaim(self.pids.pop(pid))
        return os.waitstatus_to_exitcode(status)

    def reap_all(self) -> None:
        """Wait for every child; fail if one failed."""
        for pid in list(self.pids):
            assert self.reap(pid) == 0, "a child failed; see its traceback"

    def taken(self) -> int:
        """Permits taken, from the table itself."""
        return self.unattached.snapshot()[0]


def acquire(limiter: Limiter, timeout_s: float = 60.0) -> Permit:
    """Take a permit, after a wait in the queue if need be."""
    admission = limiter.request()
    return admission.wait(timeout_s) if isinstance(admission, Ticket) else admission


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
