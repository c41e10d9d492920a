"""A model's own limit over bare forked processes."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from app.admission.limiter import Limiter
from app.admission.model_limit import ModelLimit, ModelLimits
from app.errors import ModelLimitReached
from app.shared_memory.counters import InflightCounters
from tests.multiprocess.pressed import LIMIT, press
from tests.support.forks import Barrier, Parent

PLACE = 5


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=100)
    yield parent
    parent.close()


def _limit(parent: Parent, slot: int | None, limit: int, place: int = PLACE) -> ModelLimit:
    """The limit as the worker of that slot has it."""
    assert slot is not None
    usage = InflightCounters(parent.table)
    usage.attach(slot)
    return ModelLimit(parent.table, usage, place, limit)


def test_limit_holds_and_is_reached_over_processes(parent: Parent) -> None:
    """4 processes that admit as fast as they can: never more inside than the limit, and the limit is reached."""
    press(parent, lambda limiter: _limit(parent, limiter._slot, LIMIT).acquire)
    assert InflightCounters(parent.table).total(PLACE) == 0


def test_model_that_is_full_refuses_at_once_and_takes_nothing(parent: Parent) -> None:
    """The third of two is told when to come again; another model is not touched; one that leaves makes room for one."""
    slot = parent.slots.claim().slot
    limit, other = _limit(parent, slot, 2), _limit(parent, slot, 1, PLACE + 1)
    leave = [limit.acquire(), limit.acquire()]
    for _ in range(5):
        with pytest.raises(ModelLimitReached, match="has 2 requests in progress") as refused:
            limit.acquire()
        assert refused.value.retry_after == 1, "the places were held for a moment"
    assert InflightCounters(parent.table).total(PLACE) == 2
    other.acquire()
    leave.pop()()
    leave.append(limit.acquire())
    with pytest.raises(ModelLimitReached):
        limit.acquire()
    for one in leave:
        one()
    assert InflightCounters(parent.table).total(PLACE) == 0


def test_smaller_limit_holds_for_those_who_come_after_it(parent: Parent) -> None:
    """New routes lower the limit while more are inside: nobody comes in until fewer than the new limit are there."""
    slot = parent.slots.claim().slot
    leave = [_limit(parent, slot, 3).acquire() for _ in range(3)]
    limit = _limit(parent, slot, 1)
    for one in leave:
        with pytest.raises(ModelLimitReached):
            limit.acquire()
        one()
    limit.acquire()


@pytest.mark.parametrize("inside_the_lock", [False, True])
def test_killed_process_gives_back_when_its_slot_is_reclaimed(parent: Parent, inside_the_lock: bool) -> None:
    """Two of three are a worker's that is SIGKILLed: they are missing until it is reclaimed, and then there are two."""
    inside = Barrier()
    limit = _limit(parent, parent.slots.claim().slot, 3)
    leave = limit.acquire()

    def work(limiter: Limiter) -> None:
        own = _limit(parent, limiter._slot, 3)
        own.acquire()
        own.acquire()
        if inside_the_lock:
            with parent.table.lock:
                inside.arrive()
        inside.arrive()

    victim = parent.fork(work)
    inside.wait_arrived(1)
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    signal.alarm(20)  # a lock that outlived its holder would hang here
    with pytest.raises(ModelLimitReached):
        limit.acquire()
    signal.alarm(0)
    assert parent.reap(victim) == -signal.SIGKILL
    leaves: list[Callable[[], None]] = [limit.acquire(), limit.acquire()]
    with pytest.raises(ModelLimitReached):
        limit.acquire()
    for one in (leave, *leaves):
        one()
    assert InflightCounters(parent.table).total(PLACE) == 0


@pytest.mark.parametrize(("held_s", "limit", "seconds"), [(0, 2, 1), (1, 2, 1), (9, 2, 5), (9, 3, 3), (900, 2, 60)])
def test_retry_after_is_the_models_own(parent: Parent, held_s: float, limit: int, seconds: int) -> None:
    """Little's law: places held for so long come free at limit / held; whatever other models and the queue do."""
    own = _limit(parent, parent.slots.claim().slot, limit)
    parent.table.array("model_held_us")[PLACE] = int(held_s * 1e6)
    parent.table.array("model_held_us")[PLACE + 1] = 40_000_000
    parent.table.column("service_us")[0] = 50_000_000
    assert own.retry_after() == seconds


def test_held_time_is_learnt_and_forgotten_with_the_id(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request sets the mean, later ones move it by an eighth, and a new model begins without one."""
    now = [1000.0]
    monkeypatch.setattr("app.admission.model_limit.monotonic", lambda: now[0])
    own = _limit(parent, parent.slots.claim().slot, 1)
    for held_s, mean_s in ((8.0, 8), (16.0, 9)):
        leave = own.acquire()
        now[0] += held_s
        leave()
        assert own.retry_after() == mean_s + 1  # a microsecond more, rounded up
    ModelLimits(parent.table, InflightCounters(parent.table)).reset(PLACE)
    assert own.retry_after() == 1
