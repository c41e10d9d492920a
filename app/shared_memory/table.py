"""The memory that all workers share: a table of counters, the lock over it, and an eventfd per worker.

The table has a row per worker slot and a column per counter, all 64-bit integers. Beside the columns it has named
single cells and named arrays. Each part of the shared state declares what it keeps there as a `Layout`.

**The lock dies with its holder.** It is a robust, process-shared POSIX mutex inside the block (pthread_mutexattr_
setrobust(3)). When a process is SIGKILLed while it holds the mutex, the kernel frees it and tells the next locker so
(EOWNERDEAD); `multiprocessing.Lock` would block every survivor for ever. A `fcntl` lock has the same property and
costs three times as much (tests/bench/limiter.py prints both). The lock excludes processes, not the greenlets of one
process: nothing may yield while it is held. A holder that is stopped (SIGSTOP) keeps it until it goes on or is killed.

**What a dead holder leaves behind** is a prefix of its stores. Invariant: code that writes under the lock commits with
a single aligned store, and orders its stores so that every prefix is safe: a permit may be missing for a moment, but is
never taken twice.

The block is an anonymous file (memfd_create(2)): workers inherit it by fork, a new binary (USR2) by exec, and nothing
is left when the last process ends. The eventfds are inherited the same way.
"""

import hashlib
import mmap
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from app.errors import SharedStateMismatch
from app.native import MUTEX_BYTES, RobustMutex

SLOTS = 64
"""Rows: how many workers can live at once. HUP, TTIN and USR2 run more of them than WEB_CONCURRENCY for a while."""

_WORD = 8
_MFD_CLOEXEC = 1


class Layout(NamedTuple):
    """What one part of the shared state keeps in the table."""

    columns: tuple[str, ...] = ()
    """Counters with a word for every slot."""
    cells: tuple[str, ...] = ()
    """Counters of a single word."""
    arrays: Mapping[str, int] = {}
    """Arrays, with their length in words."""


class SharedTable:
    """Columns of `SLOTS` rows, single cells and named arrays, over one block of shared memory."""

    def __init__(self, layouts: Iterable[Layout], *, identity: str = "", inherited: str | None = None) -> None:
        """Make the block, or adopt the one that `handover()` described to the previous program.

        `identity` names what must be equal in both programs beside the layout: the limits, what numbers mean. Raises
        SharedStateMismatch if the block to adopt has another layout or identity.
        """
        layouts = tuple(layouts)
        cells = [name for layout in layouts for name in layout.cells]
        columns = [name for layout in layouts for name in layout.columns]
        arrays = {name: length for layout in layouts for name, length in layout.arrays.items()}
        signature = name_hash(f"{SLOTS} {columns} {cells} {arrays} {identity}")
        size = _WORD * (MUTEX_BYTES // _WORD + 1 + len(cells) + len(columns) * SLOTS + sum(arrays.values()))
        self.adopted = inherited is not None
        """Whether the block was made by the previous program."""
        self._fd, self.eventfds = _make_files(size) if inherited is None else _adopt_files(inherited, size)
        block = mmap.mmap(self._fd, size)
        self.lock = RobustMutex(block, initialise=not self.adopted)
        self._cells: memoryview[int] = memoryview(block).cast("q")[MUTEX_BYTES // _WORD :]
        if not self.adopted:
            self._cells[0] = signature
        elif self._cells[0] != signature:
            raise SharedStateMismatch(_MISMATCH)
        self._index = {name: 1 + i for i, name in enumerate(cells)}
        first = 1 + len(cells)
        self._columns = {name: first + i * SLOTS for i, name in enumerate(columns)}
        start = first + len(columns) * SLOTS
        self._arrays: dict[str, tuple[int, int]] = {}
        for name, length in arrays.items():
            self._arrays[name] = (start, start + length)
            start += length

    def column(self, name: str) -> "memoryview[int]":
        """The counters called `name`, one per slot, as a view: writes go to the shared memory."""
        start = self._columns[name]
        return self._cells[start : start + SLOTS]

    def cell(self, name: str) -> "memoryview[int]":
        """The single counter called `name`, as a view of length 1."""
        at = self._index[name]
        return self._cells[at : at + 1]

    def array(self, name: str) -> "memoryview[int]":
        """The array called `name`, behind the columns."""
        start, end = self._arrays[name]
        return self._cells[start:end]

    def notify(self, slot: int) -> None:
        """Make the eventfd of the worker in `slot` readable, which wakes the worker. Notifying twice is harmless."""
        try:
            os.eventfd_write(self.eventfds[slot], 1)
        except BlockingIOError:  # the counter is at its maximum, 2**64 - 2, so it is readable already
            pass

    def handover(self) -> str:
        """Let the next program that this process executes inherit the block. Returns the value for `inherited`."""
        fds = [self._fd, *self.eventfds]
        for fd in fds:
            os.set_inheritable(fd, True)
        return ",".join(str(fd) for fd in fds)


def _make_files(size: int) -> tuple[int, list[int]]:
    fd = os.memfd_create("router", _MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd, [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(SLOTS)]


def _adopt_files(inherited: str, size: int) -> tuple[int, list[int]]:
    fd, *eventfds = (int(fd) for fd in inherited.split(","))
    if os.fstat(fd).st_size != size:
        raise SharedStateMismatch(_MISMATCH)
    for each in (fd, *eventfds):
        os.set_inheritable(each, False)
    return fd, eventfds


def name_hash(name: str) -> int:
    """Returns a 64-bit hash of a name: never 0, the same in every process. Collisions are not expected."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:_WORD], "little", signed=True) or 1


_MISMATCH = (
    "the running server's shared memory has another layout, another form of routes, other numbers for errors, or "
    "other limits than this program: a binary upgrade (USR2) needs the same MAX_CONCURRENCY, QUEUE_SIZE and table; "
    "restart instead"
)
