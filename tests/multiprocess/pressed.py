"""A limit over processes that all admit as fast as they can, with an observer that the kernel keeps exact."""

import mmap
import os
import time
from collections.abc import Callable

from app.admission.limiter import Limiter
from app.errors import Rejected
from tests.support.forks import Barrier, KernelCount, Parent

LIMIT = 3
_PROCESSES = 4
_ROUNDS = 2500
_LONG_S = 20

Admit = Callable[[], Callable[[], object]]
"""Takes a place and returns what gives it back. Raises a Rejected."""


def press(parent: Parent, admit_in: Callable[[Limiter], Admit], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Have 4 processes take places of a limit of 3: never are more inside than that, and the limit is reached.

    `admit_in` is called in each process, with its limiter. `meanwhile` is called here while they run. Each
    takes 2,500 places, and more until the limit was reached: one could be through before the next has a processor.
    """
    count, start = KernelCount(LIMIT), Barrier()
    reached = mmap.mmap(-1, 1)

    def work(limiter: Limiter) -> None:
        admit = admit_in(limiter)
        start.arrive()
        rounds, deadline = 0, time.monotonic() + _LONG_S
        while rounds < _ROUNDS or (not reached[0] and time.monotonic() < deadline):
            rounds += 1
            try:
                leave = admit()
            except Rejected:
                continue
            count.enter()
            if not reached[0] and count.free() == 0:
                reached[0] = 1
            os.sched_yield()
            count.leave()
            leave()

    for _ in range(_PROCESSES):
        parent.fork(work)
    start.wait_arrived(_PROCESSES)
    start.lift(_PROCESSES)
    meanwhile()
    parent.reap_all()
    assert reached[0], "the limit was never reached"
    assert count.free() == LIMIT
