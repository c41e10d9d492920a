"""The cap over bare forked processes."""

import os
import random
import signal
from pathlib import Path

import gevent
import pytest

from app.admission.limiter import Limiter
from app.errors import LimitReached, NoFreeSlot, QueueFull, QueueTimeout
from app.shared_memory.table import SLOTS
from tests.support.forks import Barrier, KernelCount, Parent
from tests.support.router import until


def test_cap_holds_and_is_reached_over_processes() -> None:
    """4 processes that admit as fast as they can: never more inside than the cap, and the cap is reached."""
    parent, count, start = Parent(limit=3), KernelCount(3), Barrier()
    full_read, full_write = os.pipe()

    def work(limiter: Limiter) -> None:
        start.arrive()
        seen_full = False
        for _ in range(3000):
            try:
                permit = limiter.acquire()
            except LimitReached:
                continue
            count.enter()
            if not seen_full and count.free() == 0:
                seen_full = True
                os.write(full_write, b"!")
            os.sched_yield()
            count.leave()
            permit.release()

    for _ in range(4):
        parent.fork(work)
    start.wait_arrived(4)
    start.lift(4)
    parent.reap_all()
    os.set_blocking(full_read, False)
    assert os.read(full_read, 8), "the cap was never reached"
    assert parent.taken() == 0
    assert count.free() == 3


def test_newest_permit_is_the_last_one() -> None:
    """With limit 2, permits held in one process are missing in another, and come back when released there."""
    parent, held, back = Parent(limit=2), Barrier(), Barrier()

    def holder(limiter: Limiter) -> None:
        permits = [limiter.acquire(), limiter.acquire()]
        held.arrive()
        for permit in permits:
            permit.release()
            permit.release()  # once more: must not give back another's
        back.arrive()

    parent.fork(holder)
    held.wait_arrived(1)
    own = parent.door()
    with pytest.raises(LimitReached):
        own.acquire()
    held.lift(1)
    back.wait_arrived(1)
    assert parent.taken() == 0
    permits = [own.acquire(), own.acquire()]
    with pytest.raises(LimitReached):
        own.acquire()
    for permit in permits:
        permit.release()
    back.lift(1)
    parent.reap_all()


def test_process_killed_inside_the_lock_stops_nobody() -> None:
    """A process SIGKILLed while it holds the lock: the others go on, and its permits come back."""
    parent, inside = Parent(limit=2), Barrier()

    def victim(limiter: Limiter) -> None:
        limiter.acquire()
        with parent.table.lock:
            inside.arrive()

    victim_pid = parent.fork(victim)
    inside.wait_arrived(1)
    os.kill(victim_pid, signal.SIGKILL)
    own = parent.door()
    signal.alarm(20)  # a lock that outlived its holder would hang here
    first = own.acquire()
    with pytest.raises(LimitReached):
        own.acquire()
    signal.alarm(0)
    assert parent.reap(victim_pid) == -signal.SIGKILL
    assert parent.table.cell("permits_reclaimed")[0] == 1
    own.acquire().release()
    first.release()
    assert parent.taken() == 0


def test_waiting_locker_survives_the_holders_death() -> None:
    """One who already waits for the lock gets it when the holder is SIGKILLed."""
    parent, inside, go, admitted = Parent(limit=1), Barrier(), Barrier(), Barrier()

    def victim(_: Limiter) -> None:
        with parent.table.lock:
            inside.arrive()

    def waiter(limiter: Limiter) -> None:
        go.arrive()
        limiter.acquire().release()
        admitted.arrive()

    waiter_pid = parent.fork(waiter)
    go.wait_arrived(1)
    victim_pid = parent.fork(victim)
    inside.wait_arrived(1)
    go.lift(1)
    until(lambda: "futex" in Path(f"/proc/{waiter_pid}/wchan").read_text(), "the other waits for the lock")
    os.kill(victim_pid, signal.SIGKILL)
    assert parent.reap(victim_pid) == -signal.SIGKILL
    admitted.wait_arrived(1)
    admitted.lift(1)
    parent.reap_all()


def test_slots_run_out_instead_of_being_shared() -> None:
    """64 workers have 64 rows; the 65th is refused, and a freed row can be claimed again."""
    parent = Parent(limit=1)
    claimed = [parent.slots.claim() for _ in range(SLOTS)]
    assert [claim.slot for claim in claimed] == list(range(SLOTS))
    with pytest.raises(NoFreeSlot, match="64"):
        parent.slots.claim()
    parent.slots.reclaim(claimed[17])
    assert parent.slots.claim().slot == 17


def test_rows_of_a_dead_arbiters_workers_are_reclaimed_once() -> None:
    """Rows whose worker is dead are reclaimed by another arbiter's worker; those of the living are not."""
    parent = Parent(limit=4)

    def arbiter(_: Limiter) -> None:
        claim = parent.slots.claim()
        worker = os.fork()
        if worker == 0:
            parent.slots.occupy(claim)
            parent._door(claim.slot).acquire()
            os._exit(0)
        os.waitpid(worker, 0)  # died without its row being reclaimed, and so does this arbiter
        parent.slots.claim()  # for a worker that it doesn't live to fork

    own = parent.door()
    own.acquire()
    pid = parent.fork(arbiter)
    os.waitpid(pid, 0)
    parent.slots.reclaim(parent.pids.pop(pid))
    assert parent.taken() == 2
    assert parent.slots.reclaim_dead() == 1
    assert parent.slots.reclaim_dead() == 0
    assert parent.taken() == 1
    assert sum(1 for number in parent.table.column("claim") if number) == 1


def test_row_of_a_worker_that_its_living_arbiter_forgot_is_reclaimed() -> None:
    """gunicorn forgets a worker that dies while it is about to signal it; a zombie, too, holds nothing."""
    parent = Parent(limit=4)
    own = parent.door()

    def worker(other: Limiter) -> None:
        other.acquire()

    pid = parent.fork(worker)
    claim = parent.pids.pop(pid)
    until(lambda: " Z " in Path(f"/proc/{pid}/stat").read_text(), "it is a zombie")
    assert parent.slots.reclaim_dead() == 1
    os.waitpid(pid, 0)
    assert own.snapshot() == (0, 0)
    assert parent.slots.claim().slot == claim.slot


def test_successors_row_is_not_reclaimed_with_its_predecessors() -> None:
    """Of two who notice a death the second does nothing: the row may be a living worker's by then."""
    parent = Parent(limit=4)
    claim = parent.slots.claim()
    inflight = parent.table.column("inflight")
    inflight[claim.slot] = 1
    assert parent.slots.reclaim(claim) == 1
    assert parent.slots.claim().slot == claim.slot
    inflight[claim.slot] = 1
    assert parent.slots.reclaim(claim) == 0
    assert inflight[claim.slot] == 1


def test_row_that_was_occupied_meanwhile_is_not_reclaimed() -> None:
    """Whoever saw a slot claimed by a dead arbiter and empty must look again: its worker may have started since."""
    parent = Parent(limit=4)
    claim = parent.slots.claim()
    assert parent.slots.occupy(claim)
    parent.table.column("inflight")[claim.slot] = 1
    assert parent.slots.reclaim(claim, seen_pid=0) == 0
    assert parent.table.column("inflight")[claim.slot] == 1


def test_worker_whose_slot_was_taken_back_does_not_use_it() -> None:
    """Its arbiter died between claim and start, and another claimed the slot: the two must not share a row."""
    parent = Parent(limit=4)
    claim = parent.slots.claim()
    parent.slots.reclaim(claim)
    again = parent.slots.claim()
    assert again.slot == claim.slot
    assert not parent.slots.occupy(claim)
    assert parent.table.column("worker_pid")[claim.slot] == 0
    assert parent.slots.occupy(again)


def test_newcomer_does_not_overtake_although_a_permit_is_free() -> None:
    """Who gave the permit back was killed before granting it: it is the waiter's all the same."""
    parent = Parent(limit=1, queue_size=1)
    own, other = parent.door(), parent.door()
    other.acquire()
    waiter = gevent.spawn(own.acquire)
    gevent.sleep(0)
    parent.table.column("inflight")[other._slot] -= 1  # the first of the two stores of a release
    with pytest.raises(QueueFull):
        other.acquire()
    waiter.kill()
    parent.close()


def test_grant_whose_giver_died_before_ringing_is_picked_up() -> None:
    """Granted and not rung: the waiter's worker finds it with its next upkeep."""
    parent = Parent(limit=1, queue_size=2)
    own, other = parent.door(), parent.door()
    held = other.acquire()
    waiter = gevent.spawn(own.acquire)
    gevent.sleep(0)
    bell = parent.table.eventfds[0]
    held.release()
    os.eventfd_read(bell)  # as if it had never rung
    gevent.sleep(0.01)
    assert not waiter.ready()
    own.pick_up()
    waiter.get(timeout=10).release()
    assert own.snapshot() == (0, 0)


def test_queue_refuses_when_full_and_when_waited_too_long() -> None:
    """One permit, one place: the second waits, the third is refused, and the second too once its time is up."""
    parent = Parent(limit=1, queue_size=1, timeout_s=0.2)
    own = parent.door()
    permit = own.acquire()
    outcome: list[type[BaseException]] = []

    def wait() -> None:
        with pytest.raises(QueueTimeout) as refused:
            own.acquire()
        outcome.append(refused.type)

    waiter = gevent.spawn(wait)
    gevent.sleep(0)
    assert own.snapshot() == (1, 1)
    with pytest.raises(QueueFull):
        own.acquire()
    waiter.join(10)
    assert outcome == [QueueTimeout]
    assert own.snapshot() == (1, 0)
    permit.release()
    assert own.snapshot() == (0, 0)


def test_retry_after_is_the_line_ahead_over_the_service_rate() -> None:
    """Little's law: with mean service m and cap c, the n-th in line waits n * m / c; 1 to 60 seconds."""
    parent = Parent(limit=2, queue_size=100)
    own = parent.door()
    assert own.retry_after() == 1, "nothing observed yet"
    service = parent.table.column("service_us")
    service[0] = 8_000_000
    assert own.retry_after() == 4
    parent.table.column("queued")[0] = 3
    assert own.retry_after() == 16
    parent.table.column("queued")[0] = 90
    assert own.retry_after() == 60
    service[0] = 10
    assert own.retry_after() == 1


def test_killed_at_random_under_load_leaks_nothing() -> None:
    """Processes SIGKILLed at random moments, with a queue: the line goes on, and every permit comes back."""
    parent, dice = Parent(limit=2, queue_size=8), random.Random(3)

    def work(limiter: Limiter) -> None:
        def ask() -> None:
            while True:
                try:
                    permit = limiter.acquire()
                except QueueFull:
                    gevent.sleep(0.001)
                    continue
                gevent.sleep(0)
                permit.release()

        gevent.joinall([gevent.spawn(ask) for _ in range(3)])

    for _ in range(3):
        parent.fork(work)
    for _ in range(60):
        gevent.sleep(dice.random() * 0.02)  # any moment will do
        victim = dice.choice(list(parent.pids))
        os.kill(victim, signal.SIGKILL)
        assert parent.reap(victim) == -signal.SIGKILL
        assert parent.taken() <= 2
        parent.fork(work)
    for pid in list(parent.pids):
        os.kill(pid, signal.SIGKILL)
        parent.reap(pid)
    own = parent.door()
    assert own.snapshot() == (0, 0)
    assert [own.acquire() for _ in range(2)]
    assert own.snapshot() == (2, 0)
