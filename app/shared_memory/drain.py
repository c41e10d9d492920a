"""Whether this server is shutting down as a whole, told by the arbiter to each of its workers in the worker's own row.

A worker that merely makes way for another (HUP, TTOU, max_requests) is no drain: the service goes on. Nor is the end of
a server while another one on the same sockets has workers that run, as after a binary upgrade. Each server marks the
rows of its own workers, so neither ends the other's drain.
"""

import os

from app.shared_memory.table import SharedTable

COLUMNS = ("draining",)


class Drain:
    """Begun by an arbiter, seen by its workers."""

    def __init__(self, table: SharedTable) -> None:
        self._draining = table.column("draining")
        self._arbiters = table.column("arbiter_pid")
        self._workers = table.column("worker_pid")
        self._begun_here = False
        self._slot: int | None = None

    def begin(self) -> None:
        """In the arbiter, before it signals its workers.

        Runs in a signal handler, so it must not take the lock: the code it interrupts may hold it. It needs none: a
        row's mark is written by its arbiter only, and this flag, stored first, reaches the workers forked later.
        """
        me = os.getpid()
        if any(arbiter not in (0, me) and pid for arbiter, pid in zip(self._arbiters, self._workers, strict=True)):
            return
        self._begun_here = True
        for slot, arbiter in enumerate(self._arbiters):
            if arbiter == me:
                self._draining[slot] = 1

    def mark(self, slot: int) -> None:
        """In the arbiter, for a slot it has just claimed: clear what the row said, or tell the new worker too."""
        self._draining[slot] = 0
        if self._begun_here:
            self._draining[slot] = 1

    def attach(self, slot: int) -> None:
        """In the worker: this is its row."""
        self._slot = slot

    @property
    def begun(self) -> bool:
        """Asked in a worker: whether its arbiter drains."""
        return self._slot is not None and self._draining[self._slot] == 1
