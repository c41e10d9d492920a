"""Worker slots: who owns which row of the shared table, and what happens to a row whose owner died.

The arbiter claims a slot before it forks a worker and reclaims it when it has reaped that worker: `child_exit` is the
one gunicorn hook that also runs for a worker that was SIGKILLed. Two arbiters share the table during a binary upgrade
(USR2), so a slot also names the arbiter that claimed it; slots of an arbiter that died before its workers were reaped
are reclaimed by whoever notices (`reclaim_orphans`, run every second by every worker).
"""

import os
from pathlib import Path
from typing import NamedTuple

from app.errors import NoFreeSlot
from app.limiter import grant_free_permits
from app.line import Line
from app.shared import SLOTS, SharedTable

COLUMNS = ("arbiter_pid", "worker_pid")
CELLS = ("permits_reclaimed",)


class Slots(NamedTuple):
    """The rows of a table, seen by those who claim and reclaim them."""

    table: SharedTable
    limit: int
    queue_size: int

    def claim(self) -> int:
        """A free slot, the lowest, now owned by this arbiter. Raises NoFreeSlot: two workers never share a row."""
        arbiters, rows = self.table.column("arbiter_pid"), self.table.cell("rows")
        with self.table.lock:
            for slot in range(SLOTS):
                if not arbiters[slot]:
                    rows[0] = max(rows[0], slot + 1)
                    arbiters[slot] = os.getpid()
                    return slot
        raise NoFreeSlot(
            f"all {SLOTS} worker slots belong to live workers; wait for old ones to exit or lower WEB_CONCURRENCY"
        )

    def occupy(self, slot: int, owner: int) -> bool:
        """Called by the worker itself, once it runs; `owner` is its arbiter. Answers whether the slot is still theirs.

        It is not if the arbiter died between claim and now: another may have reclaimed the slot, and claimed it anew.
        """
        with self.table.lock:
            if self.table.column("arbiter_pid")[slot] != owner:
                return False
            self.table.column("worker_pid")[slot] = os.getpid()
            return True

    def workers(self) -> int:
        """How many workers live."""
        return sum(1 for pid in self.table.column("worker_pid") if pid)

    def reclaim(self, slot: int, owner: int | None = None) -> int:
        """Give back what a dead worker held, free its slot, and answer how many permits that were.

        With `owner`, do nothing unless that arbiter still owns the slot: of two who notice an orphan, the second must
        not clear the row of a successor.

        Its row is cleared before its slot is freed, all under one lock: no successor can add to the row in between.
        Then whatever came free is granted, and the bell of everyone with something to pick up is rung, because the
        dead worker may have granted and not lived to ring.
        """
        table = self.table
        with table.lock:
            if owner is not None and table.column("arbiter_pid")[slot] != owner:
                return 0
            waiting = Line(table, self.queue_size)
            held = table.column("inflight")[slot]
            for name in ("inflight", "queued", "service_us", "worker_pid"):
                table.column(name)[slot] = 0
            woken: set[int] = set()
            if self.queue_size:
                held += waiting.evict(slot)
                taken = sum(table.column("inflight")) + waiting.granted
                grant_free_permits(waiting, self.limit - taken)
                woken = waiting.granted_slots()
            table.cell("permits_reclaimed")[0] += held
            table.column("arbiter_pid")[slot] = 0
            rows = table.cell("rows")
            while rows[0] and not table.column("arbiter_pid")[rows[0] - 1]:
                rows[0] -= 1
        for other in woken:
            table.ring(other)
        return held

    def reclaim_orphans(self, arbiter: int) -> int:
        """Reclaim slots whose arbiter died without reaping. `arbiter` is the caller's own; answers the permits."""
        arbiters, workers = self.table.column("arbiter_pid"), self.table.column("worker_pid")
        freed = 0
        for slot in range(self.table.cell("rows")[0]):
            owner = arbiters[slot]
            if owner not in (0, arbiter) and not alive(owner) and not alive(workers[slot]):
                freed += self.reclaim(slot, owner)
        return freed


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie doesn't: it can do nothing more, and its parent may never reap it."""
    if not pid:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
