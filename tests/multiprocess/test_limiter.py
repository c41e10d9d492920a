"""The cap over bare forked processes."""

import os
import random
import signal
import sys
from pathlib import Path

import gevent
import pytest

from app.admission import limiter as limiter_module
from app.admission import wait_queue as wait_queue_module
from app.admission.limiter import Limiter
from app.admission.permit import Permit, Ticket
from app.errors import LimitReached, NoFreeSlot, QueueFull, QueueTimeout
from app.shared_memory.table import SLOTS
from tests.multiprocess.pressed import LIMIT, press
from tests.support.forks import Barrier, KernelCount, Parent, acquire, die_at
from tests.support.router import until


def test_cap_holds_and_is_reached_over_processes() -> None:
    """4 processes that admit as fast as they can: never more inside than the cap, and the cap is reached."""
    parent = Parent(limit=LIMIT)
    press(parent, lambda limiter: lambda: acquire(limiter).release)
    assert parent.taken() == 0


def test_newest_permit_is_the_last_one() -> None:
    """With limit 2, permits held in one process are missing in another, and come back when released there."""
    parent, held, back = Parent(limit=2), Barrier(), Barrier()

    def holder(limiter: Limiter) -> None:
        permits = [acquire(limiter), acquire(limiter)]
        held.arrive()
        for permit in permits:
            permit.release()
            permit.release()  # once more: must not give back another's
        back.arrive()

    parent.fork(holder)
    held.wait_arrived(1)
    own = parent.limiter()
    with pytest.raises(LimitReached):
        acquire(own)
    held.lift(1)
    back.wait_arrived(1)
    assert parent.taken() == 0
    permits = [acquire(own), acquire(own)]
    with pytest.raises(LimitReached):
        acquire(own)
    for permit in permits:
        permit.release()
    back.lift(1)
    parent.reap_all()


def test_process_killed_inside_the_lock_stops_nobody() -> None:
    """A process SIGKILLed while it holds the lock: the others go on, and its permits come back."""
    parent, inside = Parent(limit=2), Barrier()

    def victim(limiter: Limiter) -> None:
        acquire(limiter)
        with parent.table.lock:
            inside.arrive()

    victim_pid = parent.fork(victim)
    inside.wait_arrived(1)
    os.kill(victim_pid, signal.SIGKILL)
    own = parent.limiter()
    signal.alarm(20)  # a lock that outlived its holder would hang here
    first = acquire(own)
    with pytest.raises(LimitReached):
        acquire(own)
    signal.alarm(0)
    assert parent.reap(victim_pid) == -signal.SIGKILL
    assert parent.table.cell("permits_reclaimed")[0] == 1
    acquire(own).release()
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
        acquire(limiter).release()
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
            acquire(parent.limiter_of(claim.slot))
            os._exit(0)
        os.waitpid(worker, 0)  # died without its row being reclaimed, and so does this arbiter
        parent.slots.claim()  # for a worker that it doesn't live to fork

    own = parent.limiter()
    acquire(own)
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
    own = parent.limiter()

    def worker(other: Limiter) -> None:
        acquire(other)

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
    own, other = parent.limiter(), parent.limiter()
    acquire(other)
    waiter = gevent.spawn(acquire, own)
    gevent.sleep(0)
    assert other._slot is not None
    parent.table.column("inflight")[other._slot] -= 1  # the first of the two stores of a release
    with pytest.raises(QueueFull):
        acquire(other)
    waiter.kill()
    parent.close()


def test_grant_whose_giver_died_before_notifying_is_picked_up() -> None:
    """Granted and not notified: the waiter's worker finds it with its next upkeep."""
    parent = Parent(limit=1, queue_size=2)
    own, other = parent.limiter(), parent.limiter()
    held = acquire(other)
    waiter = gevent.spawn(acquire, own)
    gevent.sleep(0)
    held.release()
    os.eventfd_read(parent.table.eventfds[0])  # as if it had never been notified
    gevent.sleep(0.01)
    assert not waiter.ready()
    own.recover()
    waiter.get(timeout=10).release()
    assert own.snapshot() == (0, 0)


def test_queue_rejects_when_full_and_when_waited_too_long() -> None:
    """One permit, one place: the second waits, the third is refused, and the second too once its time is up."""
    parent = Parent(limit=1, queue_size=1)
    own = parent.limiter()
    permit = acquire(own)
    outcome: list[type[BaseException]] = []

    def wait() -> None:
        with pytest.raises(QueueTimeout) as rejected:
            acquire(own, timeout_s=0.2)
        outcome.append(rejected.type)

    waiter = gevent.spawn(wait)
    gevent.sleep(0)
    assert own.snapshot() == (1, 1)
    with pytest.raises(QueueFull):
        acquire(own)
    waiter.join(10)
    assert outcome == [QueueTimeout]
    assert own.snapshot() == (1, 0)
    permit.release()
    assert own.snapshot() == (0, 0)


def test_retry_after_is_the_queue_ahead_over_the_service_rate() -> None:
    """Little's law: with mean service m and cap c, the n-th in line waits n * m / c; 1 to 60 seconds."""
    parent = Parent(limit=2, queue_size=100)
    own = parent.limiter()
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


@pytest.mark.slow
def test_killed_at_random_under_load_leaks_nothing() -> None:
    """Processes SIGKILLed at random moments, with a queue: the line goes on, and every permit comes back."""
    parent, dice = Parent(limit=2, queue_size=8), random.Random(3)

    def work(limiter: Limiter) -> None:
        def ask() -> None:
            while True:
                try:
                    permit = acquire(limiter)
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
    own = parent.limiter()
    assert own.snapshot() == (0, 0)
    assert [acquire(own) for _ in range(2)]
    assert own.snapshot() == (2, 0)


def test_limiter_without_a_slot_fails_loudly() -> None:
    """Before `attach` there is no row to hold a permit: nothing is taken from any row, and the error says why."""
    parent = Parent(limit=3)
    parent.slots.claim()
    with pytest.raises(RuntimeError, match="not attached to a worker's slot"):
        parent.unattached.request()
    assert parent.taken() == 0
    assert sum(parent.table.column("inflight")) == 0
    parent.close()


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_that_admits_nobody_is_rejected(limit: int) -> None:
    """A limit below 1 changes nothing."""
    parent = Parent(limit=3)
    with pytest.raises(ValueError, match="at least 1"):
        parent.unattached.set_limit(limit)
    assert parent.unattached.limit == 3
    parent.close()


def test_raised_limit_admits_those_who_wait_in_other_processes() -> None:
    """One permit and three waiters of another process: raising the limit to 3 grants to the two that came first."""
    parent, waiting, admitted = Parent(limit=1, queue_size=3), Barrier(), Barrier()
    own = parent.limiter()
    held = acquire(own)

    def work(other: Limiter) -> None:
        tickets = [other.request() for _ in range(3)]
        assert all(isinstance(ticket, Ticket) for ticket in tickets)
        waiting.arrive()
        permits = [ticket.wait(20) for ticket in tickets[:2] if isinstance(ticket, Ticket)]
        admitted.arrive()
        for permit in permits:
            permit.release()
        assert isinstance(tickets[2], Ticket)
        tickets[2].wait(20).release()

    parent.fork(work)
    waiting.wait_arrived(1)
    own.set_limit(3)
    waiting.lift(1)
    admitted.wait_arrived(1)
    assert own.snapshot() == (3, 1)
    admitted.lift(1)
    parent.reap_all()
    held.release()
    assert own.snapshot() == (0, 0)
    parent.close()


def test_lowered_limit_admits_nobody_until_enough_have_left() -> None:
    """Three hold permits when the limit falls to 1: a newcomer of another process gets in only after all have left."""
    parent, turn, tried = Parent(limit=3), Barrier(), Barrier()
    own = parent.limiter()
    held = [acquire(own) for _ in range(3)]

    def work(other: Limiter) -> None:
        for _ in range(3):
            turn.arrive()
            with pytest.raises(LimitReached, match="all 1 permits are taken"):
                acquire(other)
            tried.arrive()
        acquire(other)
        with pytest.raises(LimitReached):
            acquire(other)

    own.set_limit(1)
    pid = parent.fork(work)
    for permit in held:  # each time the newcomer has been rejected before one more leaves
        turn.wait_arrived(1)
        turn.lift(1)
        tried.wait_arrived(1)
        permit.release()
        tried.lift(1)
    assert parent.reap(pid) == 0
    assert parent.taken() == 0
    parent.close()


@pytest.mark.slow
def test_limit_that_changes_under_load_is_never_exceeded() -> None:
    """4 processes admit as fast as they can while a fifth moves the limit between 1 and 5: never more than 5 inside,
    never more than the limit once it has settled, and every waiter is served in the end."""
    parent, count, dice = Parent(limit=5, queue_size=64), KernelCount(5), random.Random(7)

    def work(limiter: Limiter) -> None:
        def ask() -> None:
            for _ in range(400):
                permit = acquire(limiter)
                count.enter()
                gevent.sleep(0)
                count.leave()
                permit.release()

        gevent.joinall([gevent.spawn(ask) for _ in range(4)], raise_error=True)

    def change(limiter: Limiter) -> None:
        for _ in range(300):
            limiter.set_limit(dice.randint(1, 5))
            gevent.sleep(0.001)
        limiter.set_limit(5)

    for _ in range(4):
        parent.fork(work)
    parent.fork(change)
    parent.reap_all()
    assert parent.taken() == 0
    assert count.free() == 5
    parent.close()


def _death_while_raising(step: int) -> int:
    """Kill a process at that line of `set_limit`. Returns how it ended."""
    parent = Parent(limit=1, queue_size=2)
    own = parent.limiter()
    held = acquire(own)
    waiter = gevent.spawn(acquire, own)
    gevent.sleep(0)

    def victim(other: Limiter) -> None:
        sys.settrace(die_at(step, {limiter_module.__file__, wait_queue_module.__file__}))
        other.set_limit(2)
        sys.settrace(None)

    ending = parent.reap(parent.fork(victim))
    own.recover()
    if own.limit == 2:
        waiter.get(timeout=10).release()
        held.release()
    else:
        assert not waiter.ready()
        held.release()
        waiter.get(timeout=10).release()
    assert own.snapshot() == (0, 0)
    parent.close()
    return ending


@pytest.mark.slow
@pytest.mark.pure
def test_death_before_any_line_of_a_raise_leaves_the_old_limit_or_the_new() -> None:
    """SIGKILL before every single line of `set_limit`: the limit is the old or the new one, and no waiter is stuck."""
    step = 0
    while (ending := _death_while_raising(step)) != 0:
        assert ending == -signal.SIGKILL
        step += 1
    assert step >= 5, "the victim was not killed inside set_limit"


def test_cancelled_ticket_gives_back_what_it_was_granted() -> None:
    """A ticket that is cancelled before or after its grant holds nothing; cancelling again changes nothing."""
    parent = Parent(limit=1, queue_size=2)
    own = parent.limiter()
    held = acquire(own)
    first, second = own.request(), own.request()
    assert isinstance(first, Ticket)
    assert isinstance(second, Ticket)
    first.cancel()
    assert own.snapshot() == (1, 1)
    held.release()  # grants to the second
    assert own.snapshot() == (1, 0)
    second.cancel()
    second.cancel()
    first.cancel()
    assert own.snapshot() == (0, 0)
    parent.close()


def test_permits_and_tickets_tell_their_state() -> None:
    """What is printed of a permit or a ticket says whether it is held, waiting, admitted or done."""
    parent = Parent(limit=1, queue_size=1)
    own = parent.limiter()
    permit, ticket = own.request(), own.request()
    assert isinstance(permit, Permit)
    assert isinstance(ticket, Ticket)
    assert repr(permit).startswith("<Permit held ")
    assert repr(ticket) == f"<Ticket {ticket.number} waiting>"
    permit.release()
    assert repr(permit) == "<Permit released>"
    assert repr(ticket) == f"<Ticket {ticket.number} admitted>"
    ticket.cancel()
    assert repr(ticket) == f"<Ticket {ticket.number} left>"
    parent.close()


def test_limiter_whose_limit_was_never_set_is_not_attached() -> None:
    """It would reject every request, quietly: the worker fails at its start instead."""
    parent = Parent(limit=1)
    parent.table.cell("limit")[0] = 0
    with pytest.raises(RuntimeError, match="set_limit"):
        parent.limiter()


def test_ticket_is_waited_for_once() -> None:
    """A second wait, or one after `cancel`, is a mistake of the caller and no timeout."""
    parent = Parent(limit=1, queue_size=1)
    own = parent.limiter()
    acquire(own)
    ticket = own.request()
    assert isinstance(ticket, Ticket)
    ticket.cancel()
    with pytest.raises(RuntimeError, match="no place in the queue"):
        ticket.wait(1)
    assert own.snapshot() == (1, 0)
