"""What the cap costs: a permit, and the lock under it, in nanoseconds and beside an empty function call.

    python -m tests.bench.limiter [--processes 4] [--operations 20000] [--repeats 5]

There is no server here: forked processes share one table and use app.admission.limiter as workers do.

How to read it: a row's name ends with how many processes are at it at once. `ns` is wall-clock time over all operations
of all processes together (its inverse is the throughput), the median of the repeats. `x call` is that time in empty
Python function calls, timed in the same run: it compares runs on different machines, which `ns` does not. `spread` is
the slowest repeat over the fastest; above 1.5 or so the machine was busy with something else, and the row says little.
On fewer cores than processes, contended rows contain the switching between them.

- empty call: `f()` with `def f(): pass`, the yardstick.
- permit: acquire and release, a permit always free. This is what every request pays.
- permit, queue: the same with a queue that nobody stands in.
- rejection: acquire with the cap reached and no queue: what a 429 costs before HTTP.
- hand-over: cap 1 and everybody queues, so that each permit goes from one to the next through queue and eventfd. Alone,
  nobody is there to hand over to.
- mutex: the lock as the limiter uses it (RobustMutex). Below it, what it is instead of: a `fcntl` lock, which also dies
  with its holder, and multiprocessing.Lock, which does not.
"""

import argparse
import fcntl
import multiprocessing
import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from app.admission.limiter import Limiter
from app.bootstrap import shared_table
from app.errors import LimitReached
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.table import Table
from tests.support.forks import Barrier, Parent, acquire

Work = Callable[[Limiter, int], None]

PLENTY = 1_000_000
QUEUE = 1024
CLOCK = struct.Struct("qq")


class Row(NamedTuple):
    """One thing that is measured."""

    name: str
    work: Work
    limit: int = PLENTY
    queue_size: int = 0
    taken: int = 0
    """Permits that somebody else holds meanwhile."""
    alone: bool = True
    """Whether it makes sense in one process."""


def permits(limiter: Limiter, operations: int) -> None:
    """Acquire and release."""
    for _ in range(operations):
        acquire(limiter).release()


def rejections(limiter: Limiter, operations: int) -> None:
    """Acquire in vain."""
    for _ in range(operations):
        try:
            acquire(limiter)
        except LimitReached:
            continue
        raise AssertionError("admitted past the cap")


def turns(lock: AbstractContextManager[object]) -> Work:
    """Take a lock and give it back."""

    def work(limiter: Limiter, operations: int) -> None:
        for _ in range(operations):
            with lock:
                pass

    return work


class FileLock:
    """A POSIX record lock on an anonymous file."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("lock")

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)


ROWS = [
    Row("permit", permits),
    Row("permit, queue", permits, queue_size=QUEUE),
    Row("rejection", rejections, limit=1, taken=1),
    Row("hand-over", permits, limit=1, queue_size=QUEUE, alone=False),
    Row("mutex", turns(shared_table(1, 0).lock)),
    Row("fcntl.lockf", turns(FileLock())),
    Row("multiprocessing.Lock", turns(multiprocessing.get_context("fork").Lock())),
]


@contextmanager
def table_of(row: Row) -> Iterator[Parent]:
    """A table with the row's permits taken."""
    parent = Parent(row.limit, row.queue_size)
    try:
        if row.taken:
            limiter = parent.limiter()
            for _ in range(row.taken):
                acquire(limiter)
        yield parent
    finally:
        parent.close()


def time_row(row: Row, processes: int, operations: int) -> float:
    """Nanoseconds an operation, with so many processes at it at once: from the first to begin to the last to end."""
    clock_read, clock_write = os.pipe()
    with table_of(row) as parent:
        start = Barrier()

        def run(limiter: Limiter) -> None:
            row.work(limiter, min(1000, operations))  # warm up
            start.arrive()
            began = time.perf_counter_ns()  # the same clock in every process
            row.work(limiter, operations)
            os.write(clock_write, CLOCK.pack(began, time.perf_counter_ns()))

        for _ in range(processes):
            parent.fork(run)  # each child ends by itself after 100 s at the latest
        start.wait_arrived(processes)
        start.lift(processes)
        parent.reap_all()
    times = list(CLOCK.iter_unpack(os.read(clock_read, processes * CLOCK.size)))
    os.close(clock_read)
    os.close(clock_write)
    elapsed: int = max(ended for _, ended in times) - min(began for began, _ in times)
    return elapsed / (processes * operations)


def time_empty_call(operations: int) -> float:
    """Nanoseconds of an empty Python function call."""

    def empty() -> None:
        pass

    began = time.perf_counter_ns()
    for _ in range(operations):
        empty()
    return (time.perf_counter_ns() - began) / operations


def add_row(table: Table, name: str, processes: int, times: list[float], call_ns: float) -> None:
    """One line of the table."""
    ns = statistics.median(times)
    spread = max(times) / min(times)
    table.add(f"{name}, by {processes}", f"{ns:,.0f}", f"{ns / call_ns:,.1f}", f"{spread:.2f}")


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description="What the cap costs, beside an empty function call.")
    parser.add_argument("--processes", type=at_least(1), default=4, help="processes of the contended rows (default 4)")
    parser.add_argument("--operations", type=at_least(1), default=20_000, help="operations a process and repeat")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="the median of so many is printed")
    add_svg(parser)
    args = parser.parse_args()
    calls = [time_empty_call(1_000_000) for _ in range(args.repeats)]
    call_ns = statistics.median(calls)
    about = f"{os.cpu_count()} cores; {args.operations} operations a process, medians of {args.repeats}"
    print(about)
    heads = ("ns", "x call", "spread")
    table = Table("Permits and locks, by so many processes", *heads, drawn=heads[:1], about=about, first=30)
    add_row(table, "empty call", 1, calls, call_ns)
    for row in ROWS:
        for processes in (1, args.processes) if row.alone else (args.processes,):
            times = [time_row(row, processes, args.operations) for _ in range(args.repeats)]
            add_row(table, row.name, processes, times, call_ns)
    write_svg(args.svg, table)


if __name__ == "__main__":
    main()
