"""Worker slots: which worker owns which row of the shared table, and what happens to the row of a dead worker.

The arbiter claims a slot before it forks a worker and reclaims it in `child_exit`, which gunicorn also calls for a
worker that was SIGKILLed. There are two exceptions. gunicorn forgets a worker that dies while the arbiter is about to
signal it, and an arbiter may die before its workers. So every worker also looks every second for rows whose worker is
dead (`reclaim_dead`).

Two processes that notice one death must not do the work twice: the second could clear the row of a successor. So every
claim has a number of its own, which is never used again, and a slot is occupied and reclaimed by that number only.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from app.errors import NoFreeSlot
from app.shared_memory.table import SLOTS, Layout, SharedTable

LAYOUT = Layout(columns=("arbiter_pid", "claim", "worker_pid"), cells=("rows", "permits_reclaimed", "claims"))


class Claim(NamedTuple):
    """A slot, and the number under which it was claimed."""

    slot: int
    number: int


class Part(Protocol):
    """A part of the shared state that keeps something in each worker's row."""

    def release_row(self, slot: int) -> int:
        """Clear what the dead worker in `slot` held. Returns how many permits came back. The lock is held."""


def used_rows(table: SharedTable) -> "memoryview[int]":
    """The cell with the number of rows in use: every row from this index on is zero."""
    return table.cell("rows")


class Slots:
    """The rows of a table, for the processes that claim and reclaim them."""

    def __init__(self, table: SharedTable, parts: Sequence[Part]) -> None:
        self._table = table
        self._parts = parts
        self._claims = table.column("claim")
        self._arbiters = table.column("arbiter_pid")
        self._workers = table.column("worker_pid")
        self._rows = used_rows(table)
        self._claim_count = table.cell("claims")
        self._permits_reclaimed = table.cell("permits_reclaimed")
        self.own: int | None = None
        """The slot that this process occupies, if it is a worker."""

    def claim(self) -> Claim:
        """Claim the lowest free slot for this arbiter. Raises NoFreeSlot: two workers never share a row."""
        with self._table.lock:
            for slot in range(SLOTS):
                if not self._claims[slot]:
                    self._rows[0] = max(self._rows[0], slot + 1)
                    self._arbiters[slot] = os.getpid()
                    self._claim_count[0] += 1
                    self._claims[slot] = self._claim_count[0]
                    return Claim(slot, self._claim_count[0])
        raise NoFreeSlot(
            f"all {SLOTS} worker slots belong to live workers; wait for old ones to exit or lower WEB_CONCURRENCY"
        )

    def occupy(self, claim: Claim) -> bool:
        """Enter this process as the worker of a claimed slot. Returns whether the claim is still valid.

        It is not if the arbiter died meanwhile and another process reclaimed the slot.
        """
        with self._table.lock:
            if self._claims[claim.slot] != claim.number:
                return False
            self._workers[claim.slot] = os.getpid()
        self.own = claim.slot
        return True

    def live_workers(self) -> int:
        """Returns the number of slots that a worker occupies."""
        return sum(1 for pid in self._workers if pid)

    def permits_reclaimed(self) -> int:
        """Returns the number of permits that came back from dead workers, ever."""
        return self._permits_reclaimed[0]

    def reclaim(self, claim: Claim, seen_pid: int | None = None) -> int:
        """Release everything that a dead worker held, and free its slot. Returns how many permits came back.

        Does nothing if the claim was reclaimed before; nor, with `seen_pid`, if another process occupies the slot now.
        """
        slot = claim.slot
        with self._table.lock:
            if self._claims[slot] != claim.number or seen_pid not in (None, self._workers[slot]):
                return 0
            # The row is cleared before the slot is freed, under one lock: no successor can add to the row in between.
            # A process killed between these stores leaves the claim as it was, so the next one starts again.
            permits = sum(part.release_row(slot) for part in self._parts)
            self._permits_reclaimed[0] += permits
            self._workers[slot] = 0
            self._arbiters[slot] = 0
            self._claims[slot] = 0
            while self._rows[0] and not self._claims[self._rows[0] - 1]:
                self._rows[0] -= 1
        return permits

    def reclaim_dead(self) -> int:
        """Reclaim every slot whose worker is dead, or whose arbiter died before its worker ran.

        Returns how many permits came back.
        """
        permits = 0
        for slot in range(self._rows[0]):
            claim, pid = Claim(slot, self._claims[slot]), self._workers[slot]
            if claim.number and not is_alive(pid or self._arbiters[slot]):
                permits += self.reclaim(claim, seen_pid=pid)
        return permits


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not: it can do nothing more, and its parent may never reap it."""
    if not pid:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
