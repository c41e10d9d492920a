"""First come, first served over processes: the queue itself, the hand-over, and a death at every step of it."""

import os
import random
import signal
import sys
from collections.abc import Callable

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission import limiter as limiter_module
from app.admission import permit as permit_module
from app.admission import wait_queue
from app.admission.limiter import Limiter
from app.admission.wait_queue import WaitQueue
from app.errors import ClientGone, QueueFull
from tests.support.forks import Barrier, KernelCount, Parent, acquire, die_at


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("agre"), st.integers(0, 7)), max_size=300))
def test_queue_behaves_as_a_list_does(steps: list[tuple[str, int]]) -> None:
    """append, grant, remove and evict in any order do what they would do to a plain list of waiters."""
    capacity = 5
    parent = Parent(limit=1, queue_size=capacity)
    parent.close()
    queue = WaitQueue(parent.table, capacity)
    model: list[tuple[int, int, bool]] = []  # ticket, slot, granted
    for action, number in steps:
        if action == "a":
            slot = number % 3
            ticket = queue.append(slot)
            if ticket is None:
                assert len(model) >= 2 * capacity
            else:
                assert not model or ticket > model[-1][0]
                model.append((ticket, slot, False))
        elif action == "g":
            waiting = [n for n, entry in enumerate(model) if not entry[2]]
            expected = model[waiting[0]][1] if waiting else None
            assert queue.grant_next() == expected
            if waiting:
                model[waiting[0]] = (*model[waiting[0]][:2], True)
        elif action == "r" and model:
            ticket, _, granted = model.pop(number % len(model))
            assert queue.is_granted(ticket) == granted
            queue.remove(ticket)
        elif action == "e":
            slot = number % 3
            assert queue.evict(slot) == sum(1 for entry in model if entry[1] == slot and entry[2])
            model = [entry for entry in model if entry[1] != slot]
        assert queue.granted() == sum(entry[2] for entry in model)
        assert queue.granted_slots() == {slot for _, slot, granted in model if granted}
        for ticket, _, granted in model:
            assert queue.is_granted(ticket) == granted


def test_permits_are_handed_over_in_order_of_arrival_over_two_workers() -> None:
    """Waiters of two processes, arriving in turns, are served in exactly that order."""
    rounds = 40
    parent = Parent(limit=1, queue_size=2 * rounds)
    order_read, order_write = os.pipe()
    turns = [os.pipe() for _ in range(2)]

    def worker(number: int) -> Callable[[Limiter], None]:
        def work(own: Limiter) -> None:
            def ask(n: int) -> None:
                permit = acquire(own)
                os.write(order_write, bytes([number, n]))
                permit.release()

            waiting = []
            for n in range(rounds):
                os.read(turns[number][0], 1)  # the parent says whose turn it is to arrive
                waiting.append(gevent.spawn(ask, n))
                gevent.sleep(0)
                os.write(arrived_write, b".")
            gevent.joinall(waiting, raise_error=True)

        return work

    arrived_read, arrived_write = os.pipe()
    own = parent.limiter()
    held = acquire(own)
    parent.fork(worker(0))
    parent.fork(worker(1))
    dice = random.Random(5)
    schedule = [0] * rounds + [1] * rounds
    dice.shuffle(schedule)
    for number in schedule:
        os.write(turns[number][1], b".")
        os.read(arrived_read, 1)
    assert own.snapshot() == (1, 2 * rounds)
    held.release()
    parent.reap_all()
    served = os.read(order_read, 4 * rounds)
    nth = [0, 0]
    for position, number in enumerate(schedule):
        assert tuple(served[2 * position : 2 * position + 2]) == (number, nth[number]), f"overtaken at {position}"
        nth[number] += 1


def test_newcomer_does_not_overtake_those_who_wait() -> None:
    """A permit that comes free belongs to the head of the queue already when a newcomer of another process asks."""
    parent, waiting, gone = Parent(limit=1, queue_size=4), Barrier(), Barrier()
    own = parent.limiter()
    held = acquire(own)

    def waiter(other: Limiter) -> None:
        asked = gevent.spawn(acquire, other)
        gevent.sleep(0)
        waiting.arrive()  # blocks the whole process: it is not notified
        permit = asked.get()
        gone.arrive()
        permit.release()

    parent.fork(waiter)
    waiting.wait_arrived(1)
    held.release()
    assert own.snapshot() == (1, 0), "the permit was granted to the waiter, though it has not woken"
    newcomer = gevent.spawn(acquire, own)
    gevent.sleep(0)
    assert own.snapshot() == (1, 1), "the newcomer has to wait"
    waiting.lift(1)
    gone.wait_arrived(1)
    assert not newcomer.ready()
    gone.lift(1)
    newcomer.get(timeout=10).release()
    parent.reap_all()
    assert parent.taken() == 0


@pytest.mark.slow
def test_no_wakeup_is_lost_in_100_000_handovers() -> None:
    """4 processes with more askers than permits, 100,000 times: if one wake-up were lost, an asker would hang."""
    each = 25_000
    parent, count = Parent(limit=2, queue_size=64), KernelCount(2)
    waited_read, waited_write = os.pipe()

    def work(own: Limiter) -> None:
        left = each
        queued = 0

        def ask() -> None:
            nonlocal left, queued
            while left > 0:
                left -= 1
                permit = acquire(own)
                count.enter()
                queued += own.snapshot()[1] > 0
                gevent.sleep(0)
                count.leave()
                permit.release()

        gevent.joinall([gevent.spawn(ask) for _ in range(6)], raise_error=True)
        os.write(waited_write, queued.to_bytes(4, "little"))

    for _ in range(4):
        parent.fork(work)
    parent.reap_all()
    waited = sum(int.from_bytes(os.read(waited_read, 4), "little") for _ in range(4))
    assert waited > 90_000, "hardly anybody waited: this was no test of hand-over"
    assert parent.table.cell("queue_number")[0] > 90_000
    assert parent.taken() == 0


@pytest.mark.parametrize("granted_by", ["own worker", "other worker"])
def test_waiter_that_leaves_passes_its_permit_on(granted_by: str) -> None:
    """A waiter whose client leaves between the grant and its waking gives the permit to the next, exactly once."""
    parent = Parent(limit=1, queue_size=4)
    own, other = parent.limiter(), parent.limiter()
    held = acquire(own if granted_by == "own worker" else other)
    first, second, third = (gevent.spawn(acquire, own) for _ in range(3))
    gevent.sleep(0)
    assert own.snapshot() == (1, 3)
    for leaving in (first, third):
        gevent.get_hub().loop.run_callback(leaving.throw, ClientGone)  # runs before the waking that a release schedules
    held.release()
    assert own.snapshot() == (1, 2), "granted to the first"
    permit = second.get(timeout=10)
    assert first.ready()
    assert third.ready()
    assert not first.successful()
    assert own.snapshot() == (1, 0)
    permit.release()
    assert own.snapshot() == (0, 0)


_ADMISSION = {limiter_module.__file__, permit_module.__file__, wait_queue.__file__}


def _acquire_free(own: Limiter) -> None:
    acquire(own)


def _acquire_and_queue(own: Limiter) -> None:
    gevent.spawn(acquire, own)
    gevent.sleep(0.001)


def _release_to_another(own: Limiter) -> None:
    acquire(own).release()


def _death_at(step: int, victims_act: Callable[[Limiter], None]) -> int:
    """Kill a process at that line of what it does, check what it leaves behind, and return how it ended."""
    parent, taken = Parent(limit=2, queue_size=4), Barrier()
    own = parent.limiter()
    held = [acquire(own) for _ in range(2 if victims_act is _acquire_and_queue else 1)]
    waiters = [gevent.spawn(acquire, own)] if victims_act is _acquire_and_queue else []
    gevent.sleep(0)

    def victim(other: Limiter) -> None:
        if victims_act is _release_to_another:
            permit = acquire(other)
            taken.arrive()
            sys.settrace(die_at(step, _ADMISSION))
            permit.release()
        else:
            sys.settrace(die_at(step, _ADMISSION))
            victims_act(other)
        sys.settrace(None)

    pid = parent.fork(victim)
    if victims_act is _release_to_another:
        taken.wait_arrived(1)
        waiters = [gevent.spawn(acquire, own) for _ in range(2)]
        gevent.sleep(0)
        taken.lift(1)
    _, status = os.waitpid(pid, 0)
    assert parent.taken() <= 2
    parent.slots.reclaim(parent.pids.pop(pid))
    for permit in held:
        permit.release()
    for waiter in waiters:
        waiter.get(timeout=10).release()
    assert own.snapshot() == (0, 0)
    again = [acquire(own), acquire(own)]
    for permit in again:
        permit.release()
    assert own.snapshot() == (0, 0)
    parent.close()
    taken.close()
    return os.waitstatus_to_exitcode(status)


@pytest.mark.slow
@pytest.mark.parametrize("victims_act", [_acquire_free, _acquire_and_queue, _release_to_another])
@pytest.mark.pure
def test_death_before_any_line_of_code_leaves_a_sound_table(victims_act: Callable[[Limiter], None]) -> None:
    """SIGKILL before every single line of acquire, enqueue and release, with others waiting: after the dead worker is
    reclaimed nobody is stuck, nothing is leaked, and there was never more than the cap."""
    step = 0
    while (ending := _death_at(step, victims_act)) != 0:  # 0: it lived to the end, so every line had its turn
        assert ending == -signal.SIGKILL
        step += 1
    assert step >= 5, "the victim was not killed inside the limiter"


def test_queue_that_churns_does_not_fill_with_the_dead() -> None:
    """Waiters that give up behind one that stays: their places can be used again, however many they were."""
    parent = Parent(limit=1, queue_size=3)
    own = parent.limiter()
    held = acquire(own)
    patient = gevent.spawn(acquire, own)
    gevent.sleep(0)
    for _ in range(500):
        impatient = [gevent.spawn(acquire, own) for _ in range(2)]
        gevent.sleep(0)
        assert own.snapshot() == (1, 3)
        with pytest.raises(QueueFull):
            acquire(own)
        gevent.killall(impatient)
    held.release()
    patient.get(timeout=10).release()
    assert own.snapshot() == (0, 0)
