"""A limit over processes that all admit as fast as they can, with an observer that the kernel keeps exact."""

import os
from collections.abc import Callable

from app.admission.limiter import Limiter
from app.errors import Rejected
from tests.support.forks import Barrier, KernelCount, Parent

LIMIT = 3
_PROCESSES = 4
_ROUNDS = 2500

Admit = Callable[[], Callable[[], object]]
"""Takes a place and returns what gives it back. Raises a Rejected."""


def press(parent: Parent, admit_in: Callable[[Limiter], Admit], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Have 4 processes take places of a limit of 3: never are more inside than that, and the limit is reached.

    `admit_in` is called in each process, with its limiter. `meanwhile` is called here while they run.
    """
    count, start = KernelCount(LIMIT), Barrier()
    full_read, full_write = os.pipe()

    def work(limiter: Limiter) -> None:
        admit = admit_in(limiter)
        start.arrive()
        seen_full = False
        for _ in range(_ROUNDS):
            try:
                leave = admit()
            except Rejected:
                continue
            count.enter()
            if not seen_full and count.free() == 0:
                seen_full = True
                os.write(full_write, b"!")
            os.sched_yield()
            count.leave()
            leave()

    for _ in range(_PROCESSES):
        parent.fork(work)
    start.wait_arrived(_PROCESSES)
    start.lift(_PROCESSES)
    meanwhile()
    parent.reap_all()
    os.set_blocking(full_read, False)
    assert os.read(full_read, 8), "the limit was never reached"
    assert count.free() == LIMIT
