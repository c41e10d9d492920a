"""The cap: at most `limit` permits over all workers together, and a wait queue for requests that find none free.

Invariants, kept under the table's lock (only a release without a queue does without it, see `give_back`):
- **Every taken permit is in a worker's row.** Taken means: one in a worker's `inflight` cell, or granted in the wait
  queue and not yet picked up. Admission sums what is taken, compares it with the limit, and adds one to the caller's
  own row by one store. So no permit is ever taken without belonging to a row. When a worker dies, clearing its row and
  its entries in the queue gives back exactly what it held (`release_row`).
- **Nobody overtakes.** A request that finds others waiting queues behind them, even when a permit is free. A permit
  that comes free is granted at once to the request that waits longest, and the worker of that request is notified.
- **No wake-up is lost.** A request joins the queue under the lock that admission and release use. So a release either
  comes before (and the request sees the free permit) or after (and the release sees the request). An eventfd that is
  notified before its worker listens stays readable. A worker that is killed between granting and notifying is reaped,
  and `release_row` notifies every worker with a permit to pick up.
- **The limit is read at every admission.** `set_limit` changes it while requests run.

This module uses gevent to wait. It never yields while it holds the lock.
"""

import os
from collections import deque
from collections.abc import Iterable
from typing import Any

from gevent import get_hub

from app.admission import wait_queue
from app.admission.expected_wait import expected_wait_ms, retry_after_s
from app.admission.permit import Permit, Ticket
from app.admission.wait_queue import WaitQueue
from app.errors import LimitReached, Overload, QueueFull, Rejected
from app.shared_memory.slots import used_rows
from app.shared_memory.table import Layout, SharedTable

_SMOOTHING = 8  # the newest request counts one eighth in a worker's mean service time


def layout(queue_size: int) -> Layout:
    """What the limiter and its queue keep in the table."""
    queue = wait_queue.layout(queue_size)
    return Layout(("inflight", "queued", "service_us"), ("limit", *queue.cells), queue.arrays)


class Limiter:
    """The cap and its queue, as one worker uses them. `attach` it to the worker's slot before `request`."""

    def __init__(self, table: SharedTable, queue_size: int = 0) -> None:
        if queue_size < 0:
            raise ValueError(f"queue size {queue_size}: must not be negative")
        self.queue_size = queue_size
        self._table = table
        self._lock = table.lock
        self._limit = table.cell("limit")
        self._inflight = table.column("inflight")
        self._queued = table.column("queued")
        self._service_us = table.column("service_us")
        self._rows = used_rows(table)
        self._queue = WaitQueue(table, queue_size)
        self._tickets: deque[Ticket] = deque()
        self._slot: int | None = None
        self._watcher: Any = None

    def attach(self, slot: int) -> None:
        """Bind to a row of the table, and listen to its eventfd when there is a queue. The worker calls this."""
        if not self._limit[0]:
            raise RuntimeError("the limit was never set, so every request would be rejected: call set_limit first")
        self._slot = slot
        if self.queue_size:
            fd = self._table.eventfds[slot]
            self._watcher = get_hub().loop.io(fd, 1)
            self._watcher.start(self._on_notified, fd)

    @property
    def limit(self) -> int:
        """The number of permits there are."""
        return self._limit[0]

    def set_limit(self, limit: int) -> None:
        """Change the number of permits, for all workers, while requests run.

        A higher limit admits requests that wait, at once. A lower one admits nobody until enough permits came back; no
        request loses its permit.
        """
        if limit < 1:
            raise ValueError(f"limit {limit}: must be at least 1")
        with self._lock:
            # One store changes the limit, and the grants follow under the same lock. A process that is killed between
            # the two leaves free permits beside waiting requests, until the next release, reclaim or `recover` grants.
            self._limit[0] = limit
            slots = self._grant()
        self._notify(slots)

    def request(self) -> Permit | Ticket:
        """Take a permit, or a place in the queue if there is one. Raises LimitReached or QueueFull.

        The caller must release the permit, or wait for or cancel the ticket.
        """
        slot = self._slot
        if slot is None:
            raise RuntimeError("the limiter is not attached to a worker's slot, so no row can hold the permit")
        ticket = None
        self._lock.acquire()
        try:
            # The whole decision lies between lock and unlock. Admission is one store: a SIGKILL before it takes
            # nothing, a SIGKILL after it leaves the permit in this worker's row, to be reclaimed. Joining the queue is
            # one store too, that of the cursor (wait_queue.py). The count of queued requests that follows is corrected
            # when the row is released.
            limit, taken = self._limit[0], self._taken()
            admitted = taken < limit and (not self.queue_size or self._waiting() == 0)
            if admitted:
                self._inflight[slot] += 1
            elif self.queue_size:
                ticket = self._enqueue(slot)
        finally:
            self._lock.release()
        if admitted:
            return Permit(self, limit, taken)
        overload = self._overload(limit, taken, self._waiting() if ticket is None else ticket.ahead)
        if ticket is None:
            raise self._rejection(overload)
        ticket.overload = overload
        return ticket

    def retry_after(self) -> int:
        """Returns the seconds, 1 to 60, until a new request would get a permit."""
        return retry_after_s(self.expected_wait_ms(self._waiting()))

    def expected_wait_ms(self, ahead: int) -> int | None:
        """Returns how long a request waits behind so many others, or None while no request has been served."""
        return expected_wait_ms(ahead, self._limit[0], self._service_us[: self._rows[0]])

    def snapshot(self) -> tuple[int, int]:
        """Returns permits taken and requests waiting, over all workers, at one moment."""
        with self._lock:
            # A worker that is killed between its two stores on joining the queue is granted before it counts as queued.
            return self._taken(), max(0, self._waiting())

    def recover(self) -> None:
        """Do what a process that was killed left undone: grant what is free, and pick up what was granted here.

        Every worker calls this every second. It is needed when the process died after a store and before the grant or
        the notification that should have followed.
        """
        if self.queue_size:
            with self._lock:
                slots = self._grant()
                self._pick_up()
            self._notify(slots)

    def release_row(self, slot: int) -> int:
        """Give back what the dead worker in `slot` held, and grant it. Returns how many permits that were.

        The lock is held. Every worker with a permit to pick up is notified, because the dead worker may have granted
        one and died before it notified.
        """
        permits = self._inflight[slot]
        self._inflight[slot] = 0
        self._queued[slot] = 0
        self._service_us[slot] = 0
        if self.queue_size:
            permits += self._queue.evict(slot)
            self._grant_free()
            # Notifying under the lock is safe: eventfd_write(2) on a non-blocking eventfd neither waits nor fails here.
            self._notify(self._queue.granted_slots())
        return permits

    def observe(self, served_s: float) -> None:
        """See `permit.Issuer`."""
        slot = self._slot
        if slot is not None:
            mean = self._service_us[slot]
            served_us = int(served_s * 1e6) + 1
            self._service_us[slot] = mean + (served_us - mean) // _SMOOTHING if mean else served_us

    def give_back(self) -> None:
        """See `permit.Issuer`."""
        slot = self._slot
        assert slot is not None
        if not self.queue_size:
            # No lock: only this worker writes the cell, giving back is one store, and no request has to be notified. A
            # concurrent sum sees the store or doesn't: at worst it rejects one more request.
            self._inflight[slot] -= 1
            return
        self._lock.acquire()
        try:
            # First give back, then grant. A process killed in between leaves a free permit beside waiting requests,
            # until it is reaped and `release_row` grants. The other order could admit one request too many.
            self._inflight[slot] -= 1
            slots = self._grant()
        finally:
            self._lock.release()
        if slots:
            self._notify(slots)

    def _overload(self, limit: int, taken: int, ahead: int) -> Overload:
        return Overload("router", limit, taken, max(0, ahead), self.expected_wait_ms(ahead))

    def _rejection(self, overload: Overload) -> Rejected:
        retry_after = retry_after_s(overload.expected_wait_ms)
        if not self.queue_size:
            return LimitReached(f"all {overload.limit} permits are taken", retry_after, overload)
        full = f"all {overload.limit} permits and all {self.queue_size} places in the queue are taken"
        return QueueFull(full, retry_after, overload)

    def settle(self, ticket: Ticket, *, keep: bool) -> bool:
        """See `permit.Issuer`. A permit that is not kept goes to the next request in the queue."""
        slots: set[int] = set()
        with self._lock:
            admitted = ticket.admitted
            if not admitted:
                admitted = self._queue.is_granted(ticket.number)
                self._depart(ticket, admitted)
            if admitted and not keep:
                assert self._slot is not None
                self._inflight[self._slot] -= 1
                slots = self._grant()
        self._notify(slots)
        return admitted and keep

    def _on_notified(self, fd: int) -> None:
        """Pick up what was granted to this worker, and wake those requests. Runs in the hub."""
        try:
            os.eventfd_read(fd)
        except BlockingIOError:  # it was read already
            pass
        with self._lock:
            self._pick_up()

    # The methods below require the lock.

    def _taken(self) -> int:
        taken = self._queue.granted() if self.queue_size else 0
        for row in range(self._rows[0]):
            taken += self._inflight[row]
        return taken

    def _waiting(self) -> int:
        if not self.queue_size:
            return 0
        waiting = -self._queue.granted()
        for row in range(self._rows[0]):
            waiting += self._queued[row]
        return waiting

    def _enqueue(self, slot: int) -> Ticket | None:
        ahead = self._waiting()
        if ahead >= self.queue_size:
            return None
        number = self._queue.append(slot)
        if number is None:
            return None
        self._queued[slot] += 1
        ticket = Ticket(self, number, ahead)
        self._tickets.append(ticket)
        return ticket

    def _grant(self) -> set[int]:
        """Grant what is free. Returns the slots of other workers to notify; this worker's grants are picked up here."""
        slots = self._grant_free()
        if self._slot in slots:
            slots.discard(self._slot)
            self._pick_up()
        return slots

    def _grant_free(self) -> set[int]:
        """Grant free permits to the requests that wait longest. Returns the slots of their workers."""
        slots: set[int] = set()
        if self.queue_size:
            for _ in range(self._limit[0] - self._taken()):
                slot = self._queue.grant_next()
                if slot is None:
                    break
                slots.add(slot)
        return slots

    def _pick_up(self) -> None:
        """Move granted permits from the queue to this worker's row, the oldest first, and wake their requests."""
        while self._tickets and self._queue.is_granted(self._tickets[0].number):
            ticket = self._tickets[0]
            self._depart(ticket, admitted=True)
            ticket.admitted = True
            ticket.event.set()

    def _depart(self, ticket: Ticket, admitted: bool) -> None:
        """Remove a ticket. If admitted, its permit enters the row first, so that no prefix of this frees the permit."""
        assert self._slot is not None
        if admitted:
            self._inflight[self._slot] += 1
        self._queue.remove(ticket.number)
        self._queued[self._slot] -= 1
        self._tickets.remove(ticket)

    def _notify(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._table.notify(slot)
