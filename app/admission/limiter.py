"""The cap: at most `limit` permits over all workers together, and the queue for those that find none free.

Rules, kept under the table's lock, which only a release that nobody can wait for does without:
- **A permit is always in somebody's row.** Taken means: one in a worker's `inflight` cell, or granted in the line and
  not yet picked up. Admission sums what is taken, compares with the limit, and adds one to the caller's own row, with
  one store. So there is no moment in which a permit is taken and belongs to nobody, and when a worker dies, clearing
  its row and its places in the line gives back exactly what it held (slots.py).
- **Nobody overtakes.** Whoever finds others waiting stands behind them, even when a permit is free. A permit that
  comes free is granted at once to the longest waiting, of whichever worker, and that worker's bell rung.
- **No wake-up is lost.** To wait is to append oneself to the line under the lock that admission and release use, so a
  release either comes before (and the permit is seen free) or after (and the waiter is seen). A bell rung before its
  worker listens stays readable. A worker killed between granting and ringing is reaped, and reaping rings all eventfds.

Knows nothing of HTTP. Uses gevent to wait, and never yields while it holds the lock.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from math import ceil
from typing import Any

from gevent import get_hub
from gevent.event import Event

from app.admission import wait_queue as line
from app.admission.wait_queue import WaitQueue
from app.errors import LimitReached, QueueFull, QueueTimeout
from app.shared_memory.table import SharedTable

COLUMNS = ("inflight", "queued", "service_us")
CELLS = ("rows", *line.CELLS)

_MAX_RETRY_AFTER_S = 60
_SMOOTHING = 8  # the newest request counts one eighth in a worker's mean time of service


class _Waiter:
    """A request in the line: `admitted` once its worker holds the permit for it."""

    __slots__ = ("admitted", "event", "ticket")

    def __init__(self, ticket: int) -> None:
        self.ticket = ticket
        self.admitted = False
        self.event = Event()


class Permit:
    """The right to be inside the model; it comes back once, however often `release` is called."""

    __slots__ = ("_limiter", "_taken_at")

    def __init__(self, limiter: "Limiter") -> None:
        self._limiter: Limiter | None = limiter
        self._taken_at = time.monotonic()

    def release(self, served: bool = True) -> None:
        """Give it back. Not `served` (the client left): how long it was held says nothing of how long service takes."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            if served:
                limiter._observe(time.monotonic() - self._taken_at)
            limiter._release()


class Limiter:
    """One worker's door to the cap. `attach` it to the worker's slot before use."""

    def __init__(self, table: SharedTable, limit: int, queue_size: int = 0, queue_timeout_s: float = 1.0) -> None:
        if limit < 1 or queue_size < 0 or queue_timeout_s <= 0:
            raise ValueError(f"limit {limit}, queue size {queue_size} and timeout {queue_timeout_s} s: too small")
        self.limit = limit
        self.queue_size = queue_size
        self._timeout_s = queue_timeout_s
        self._table = table
        self._lock = table.lock
        self._inflight = table.column("inflight")
        self._queued = table.column("queued")
        self._service_us = table.column("service_us")
        self._rows = table.cell("rows")
        self._used = self._inflight[:0]
        """Of `inflight`, the rows that were ever claimed."""
        self._line = WaitQueue(table, queue_size)
        self._waiters: deque[_Waiter] = deque()
        self._slot = -1
        self._bell: Any = None

    def attach(self, slot: int) -> None:
        """Bind to a row of the table, and listen to its bell when there is a queue. Call in the worker."""
        self._slot = slot
        if self.queue_size:
            fd = self._table.eventfds[slot]
            self._bell = get_hub().loop.io(fd, 1)
            self._bell.start(self._on_bell, fd)

    def acquire(self, before_waiting: Callable[[], object] | None = None) -> Permit:
        """Take a permit, waiting in the queue if there is one. Raises LimitReached, QueueFull or QueueTimeout.

        `before_waiting` is called if the caller has to wait, before it does; the place in the line is its own already.
        """
        slot = self._slot
        self._lock.acquire()
        try:
            # The whole decision lies between lock and unlock. To admit is its one store: a SIGKILL before it takes
            # nothing, a SIGKILL after it leaves the permit in this worker's row, to be reclaimed. To join the line is
            # one store too, that of the cursor (line.py); the count of the queued that follows is mended by reclaim.
            free = self.limit - self._taken()
            if free > 0 and (not self.queue_size or self._waiting() == 0):
                self._inflight[slot] += 1
                admitted = True
            else:
                admitted = False
                if self.queue_size:
                    waiter = self._enqueue()
        finally:
            self._lock.release()
        if admitted:
            return Permit(self)
        if not self.queue_size:
            raise LimitReached(f"all {self.limit} permits are taken", self.retry_after())
        if waiter is None:
            full = f"all {self.limit} permits and all {self.queue_size} places in the queue are taken"
            raise QueueFull(full, self.retry_after())
        return self._wait(waiter, before_waiting)

    def retry_after(self) -> int:
        """Seconds, 1 to 60, until a newcomer would get a permit: the line ahead over the observed service rate.

        By Little's law `limit` requests of mean duration m, always replaced, end at a rate of limit / m.
        """
        means = [mean for mean in self._service_us[: self._rows[0]] if mean]
        if not means:
            return 1
        ahead = max(0, self._waiting()) + 1
        seconds = ahead * (sum(means) / len(means)) / 1e6 / self.limit
        return min(_MAX_RETRY_AFTER_S, max(1, ceil(seconds)))

    def snapshot(self) -> tuple[int, int]:
        """Permits taken and requests waiting, over all workers, at one moment."""
        with self._lock:
            # A worker killed between its two stores on joining the line is granted before it counts as queued.
            return self._taken(), max(0, self._waiting())

    def pick_up(self) -> None:
        """Pick up what was granted here. The bell says when; this is for a grant whose giver died before ringing it."""
        if self.queue_size:
            with self._lock:
                self._pick_up()

    def _observe(self, served_s: float) -> None:
        mean = self._service_us[self._slot]
        served_us = int(served_s * 1e6) + 1
        self._service_us[self._slot] = mean + (served_us - mean) // _SMOOTHING if mean else served_us

    def _release(self) -> None:
        if not self.queue_size:
            # No lock: nobody else writes this cell, to give back is one store, and nobody has to be woken. Who sums
            # meanwhile sees it or doesn't: at worst a permit that has just come free is refused once more.
            self._inflight[self._slot] -= 1
            return
        self._lock.acquire()
        try:
            # First give back, then grant: killed in between, a permit is free and somebody waits, until this worker is
            # reaped and its reaper grants. The other order would let one in too many.
            self._inflight[self._slot] -= 1
            woken = self._grant()
        finally:
            self._lock.release()
        if woken:
            self._ring(woken)

    def _wait(self, waiter: _Waiter, before_waiting: Callable[[], object] | None) -> Permit:
        try:
            if before_waiting is not None:
                before_waiting()
            waiter.event.wait(self._timeout_s)
        except BaseException:  # the client left, or the worker is being stopped
            self._leave(waiter, keep=False)
            raise
        if not self._leave(waiter, keep=True):
            raise QueueTimeout(f"no permit came free within {self._timeout_s:g} s", self.retry_after())
        return Permit(self)

    def _leave(self, waiter: _Waiter, *, keep: bool) -> bool:
        """Stop waiting. If a permit was granted, keep it or pass it on; answers whether it was kept."""
        slot = self._slot
        woken: set[int] = set()
        with self._lock:
            admitted = waiter.admitted
            if not admitted:
                admitted = self._line.is_granted(waiter.ticket)
                self._depart(waiter, admitted)
            if admitted and not keep:
                self._inflight[slot] -= 1
                woken = self._grant()
        self._ring(woken)
        return admitted and keep

    def _on_bell(self, fd: int) -> None:
        """In the hub: pick up what was granted to this worker, oldest first, and let those requests go on."""
        _quiet(fd)
        self.pick_up()

    # What follows needs the lock.

    def _taken(self) -> int:
        rows = self._rows[0]
        if rows != len(self._used):
            self._used = self._inflight[:rows]
        taken = sum(self._used)
        return taken + self._line.granted if self.queue_size else taken

    def _waiting(self) -> int:
        return sum(self._queued[: self._rows[0]]) - self._line.granted if self.queue_size else 0

    def _enqueue(self) -> _Waiter | None:
        if self._waiting() >= self.queue_size:
            return None
        ticket = self._line.append(self._slot)
        if ticket is None:
            return None
        self._queued[self._slot] += 1
        waiter = _Waiter(ticket)
        self._waiters.append(waiter)
        return waiter

    def _grant(self) -> set[int]:
        """Grant what is free to those who wait; answers whose eventfds to ring. Our own pick theirs up here."""
        woken = grant_free_permits(self._line, self.limit - self._taken())
        if self._slot in woken:
            woken.discard(self._slot)
            self._pick_up()
        return woken

    def _pick_up(self) -> None:
        while self._waiters and self._line.is_granted(self._waiters[0].ticket):
            waiter = self._waiters[0]
            self._depart(waiter, admitted=True)
            waiter.admitted = True
            waiter.event.set()

    def _depart(self, waiter: _Waiter, admitted: bool) -> None:
        """Out of the line, into the row if admitted: into the row first, so that no prefix of this frees a permit."""
        if admitted:
            self._inflight[self._slot] += 1
        self._line.remove(waiter.ticket)
        self._queued[self._slot] -= 1
        self._waiters.remove(waiter)

    def _ring(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._table.notify(slot)


def grant_free_permits(waiting: WaitQueue, free: int) -> set[int]:
    """Grant up to `free` permits to the longest waiting; answers whose eventfds to ring. Needs the lock."""
    woken = set()
    for _ in range(free):
        slot = waiting.grant_next()
        if slot is None:
            break
        woken.add(slot)
    return woken


def _quiet(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:  # somebody rang, and it was heard already
        pass
