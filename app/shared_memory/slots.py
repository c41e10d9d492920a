"""Worker slots: who owns which row of the shared table, and what happens to a row whose owner died.

The arbiter claims a slot before it forks a worker and reclaims it in `child_exit`, which gunicorn also calls for a
worker that was SIGKILLed. But not always: a worker that dies while the arbiter is about to signal it is forgotten
without a word, and an arbiter may die before its workers. So every worker also looks every second for rows whose worker
is dead (`reclaim_dead`).

Two who notice one death must not do the work twice: the second might clear the row of a successor. So every claim has
a number of its own, never used again, and a slot is occupied and reclaimed by that number only.
"""

import os
from pathlib import Path
from typing import NamedTuple

from app.admission.limiter import grant_free_permits
from app.admission.wait_queue import WaitQueue
from app.errors import NoFreeSlot
from app.shared_memory import counters as usage
from app.shared_memory.table import SLOTS, SharedTable

COLUMNS = ("arbiter_pid", "claim", "worker_pid")
CELLS = ("permits_reclaimed", "claims")


class Claim(NamedTuple):
    """A slot, and the number under which it was claimed."""

    slot: int
    number: int


class Slots(NamedTuple):
    """The rows of a table, seen by those who claim and reclaim them."""

    table: SharedTable
    limit: int
    queue_size: int

    def claim(self) -> Claim:
        """A free slot, the lowest, now owned by this arbiter. Raises NoFreeSlot: two workers never share a row."""
        claims, rows, count = self.table.column("claim"), self.table.cell("rows"), self.table.cell("claims")
        with self.table.lock:
            for slot in range(SLOTS):
                if not claims[slot]:
                    rows[0] = max(rows[0], slot + 1)
                    self.table.column("arbiter_pid")[slot] = os.getpid()
                    count[0] += 1
                    claims[slot] = count[0]
                    return Claim(slot, count[0])
        raise NoFreeSlot(
            f"all {SLOTS} worker slots belong to live workers; wait for old ones to exit or lower WEB_CONCURRENCY"
        )

    def occupy(self, claim: Claim) -> bool:
        """Called by the worker itself, once it runs. Answers whether the slot is still claimed for it.

        It is not if the arbiter died between claim and now: another may have reclaimed the slot, and claimed it anew.
        """
        with self.table.lock:
            if self.table.column("claim")[claim.slot] != claim.number:
                return False
            self.table.column("worker_pid")[claim.slot] = os.getpid()
            return True

    def workers(self) -> int:
        """How many workers live."""
        return sum(1 for pid in self.table.column("worker_pid") if pid)

    def reclaim(self, claim: Claim, seen_pid: int | None = None) -> int:
        """Give back what a dead worker held, free its slot, and answer how many permits that were.

        Does nothing if that was done before; nor, with `seen_pid`, if another process has occupied the slot by now.

        Its row is cleared before its slot is freed, all under one lock: no successor can add to the row in between.
        Then whatever came free is granted, and the bell of everyone with something to pick up is rung, because the
        dead worker may have granted and not lived to ring.
        """
        slot = claim.slot
        table = self.table
        with table.lock:
            occupied_by = table.column("worker_pid")[slot]
            if table.column("claim")[slot] != claim.number or seen_pid not in (None, occupied_by):
                return 0
            waiting = WaitQueue(table, self.queue_size)
            held = table.column("inflight")[slot]
            for name in ("inflight", "queued", "service_us", "worker_pid"):
                table.column(name)[slot] = 0
            usage.clear_row(table, slot)
            woken: set[int] = set()
            if self.queue_size:
                held += waiting.evict(slot)
                taken = sum(table.column("inflight")) + waiting.granted
                grant_free_permits(waiting, self.limit - taken)
                woken = waiting.granted_slots()
            table.cell("permits_reclaimed")[0] += held
            table.column("arbiter_pid")[slot] = 0
            table.column("claim")[slot] = 0
            rows = table.cell("rows")
            while rows[0] and not table.column("claim")[rows[0] - 1]:
                rows[0] -= 1
        for other in woken:
            table.notify(other)
        return held

    def reclaim_dead(self) -> int:
        """Reclaim every slot whose worker is dead, or whose arbiter died before its worker ran; answers the permits."""
        arbiters, claims = self.table.column("arbiter_pid"), self.table.column("claim")
        workers = self.table.column("worker_pid")
        freed = 0
        for slot in range(self.table.cell("rows")[0]):
            claim, pid = Claim(slot, claims[slot]), workers[slot]
            if claim.number and not alive(pid or arbiters[slot]):
                freed += self.reclaim(claim, seen_pid=pid)
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
