"""Whether this server shuts down as a whole. The arbiter tells each of its workers in the worker's own row.

A worker that makes way for another one (HUP, TTOU, max_requests) is no drain: the service goes on. Nor is the end of a
server while another one on the same sockets has live workers, as after a binary upgrade. Each server marks the rows of
its own workers only, so neither ends the other's drain.
"""

import os

from app.shared_memory.table import Layout, SharedTable

LAYOUT = Layout(columns=("draining",))


class Drain:
    """The drain of one server: an arbiter begins it, its workers see it."""

    def __init__(self, table: SharedTable) -> None:
        self._draining = table.column("draining")
        self._arbiters = table.column("arbiter_pid")
        self._workers = table.column("worker_pid")
        self._begun_here = False
        self._slot: int | None = None

    def begin(self) -> None:
        """Begin the drain. The arbiter calls this before it signals its workers.

        It runs in a signal handler, so it must not take the lock: the interrupted code may hold it. It needs none: only
        its arbiter writes a row's mark, and the flag, stored first, reaches the workers that are forked later.
        """
        me = os.getpid()
        if any(arbiter not in (0, me) and pid for arbiter, pid in zip(self._arbiters, self._workers, strict=True)):
            return
        self._begun_here = True
        for slot, arbiter in enumerate(self._arbiters):
            if arbiter == me:
                self._draining[slot] = 1

    def mark(self, slot: int) -> None:
        """Set the mark of a slot that this arbiter has just claimed. The row may hold one of a dead worker."""
        self._draining[slot] = 0
        if self._begun_here:
            self._draining[slot] = 1

    def attach(self, slot: int) -> None:
        """Bind to the worker's row. The worker calls this."""
        self._slot = slot

    @property
    def begun(self) -> bool:
        """Whether the arbiter of this worker drains. False in a process that is no worker."""
        return self._slot is not None and self._draining[self._slot] == 1
