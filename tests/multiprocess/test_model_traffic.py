"""What is counted of a model's requests, over bare forked processes that die."""

import os
import signal

import pytest

from app.admission.limiter import Limiter
from app.admission.model_traffic import TrafficCounts
from app.shared_memory.counters import InflightCounters
from app.shared_memory.slots import Slots
from tests.support.forks import Barrier, Parent

MODEL = 5


@pytest.fixture
def parent() -> Parent:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=100)
    counts = InflightCounters(parent.table)
    parent.slots = Slots(parent.table, (counts, TrafficCounts(parent.table, counts), parent.unattached))
    return parent


def counts_of(parent: Parent, slot: int | None = None) -> TrafficCounts:
    """The counts as a process has them: of a worker if it has a slot."""
    inflight = InflightCounters(parent.table)
    counts = TrafficCounts(parent.table, inflight)
    if slot is not None:
        inflight.attach(slot)
        counts.attach(slot)
    return counts


def test_killed_workers_present_goes_and_its_totals_stay(parent: Parent) -> None:
    """Two workers count, both are SIGKILLed, and a third one counts on in a row of theirs: no total is less before."""
    reader, inside = counts_of(parent), Barrier()

    def work(limiter: Limiter) -> None:
        traffic = counts_of(parent, limiter._slot).of(MODEL)
        for _ in range(3):
            traffic.enter()
            traffic.begin_wait()
            traffic.count_rejected()
        traffic.end_wait()
        traffic.count_served(0.5)
        inside.arrive()

    victims = [parent.fork(work) for _ in range(2)]
    inside.wait_arrived(2)
    assert (reader.inflight.total(MODEL), reader.waiting(MODEL)) == (6, 4)
    totals = 6, 2, 1_000_000
    assert reader.totals(MODEL) == totals
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
        assert parent.reap(victim) == -signal.SIGKILL
        assert reader.totals(MODEL) == totals
    assert (reader.inflight.total(MODEL), reader.waiting(MODEL)) == (0, 0)
    successor = parent.fork(work)
    inside.wait_arrived(1)
    assert reader.totals(MODEL) == (9, 3, 1_500_000)
    assert reader.rejections(MODEL) == 9
    os.kill(successor, signal.SIGKILL)
    parent.reap(successor)


def test_another_model_under_the_same_id_starts_at_zero(parent: Parent) -> None:
    """What the model before counted is forgotten in the rows of all workers, the dead included; no other is."""
    slots = [parent.slots.claim() for _ in range(3)]
    for slot, _ in slots:
        for model in (MODEL, MODEL + 1):
            traffic = counts_of(parent, slot).of(model)
            traffic.count_rejected()
            traffic.count_served(1.0)
    parent.slots.reclaim(slots[2])
    counts = counts_of(parent)
    counts.mean_us[MODEL] = counts.excess_milli[MODEL] = 7
    with parent.table.lock:
        counts.reset(MODEL)
    assert counts.totals(MODEL) == (0, 0, 0)
    assert (counts.mean_us[MODEL], counts.excess_milli[MODEL]) == (0, 0)
    assert counts.totals(MODEL + 1) == (3, 3, 3_000_000)
