"""Demand: what would be in progress if nothing were rejected."""

from pathlib import Path

import pytest

from app.admission.demand import WINDOW_S, DemandMeter, Excess, Totals, excess
from app.admission.model_traffic import TrafficCounts
from app.shared_memory.counters import InflightCounters
from tests.docs import demand
from tests.support.forks import Parent
from tests.support.routed_router import RoutedRouter

MODEL = 3


@pytest.fixture
def counts() -> TrafficCounts:
    """The counts of a worker."""
    parent = Parent(limit=10)
    counts = TrafficCounts(parent.table, InflightCounters(parent.table))
    counts.attach(parent.slots.claim().slot)
    return counts


def test_model_is_never_shown_over_the_cap(tmp_path: Path) -> None:
    """A request counts for its model just before it waits or is rejected: whoever looks then sees one too many."""
    with RoutedRouter(tmp_path, {"name": "m", "protocol": "simulated"}, MAX_CONCURRENCY="2") as local:
        local.start_worker()
        shared_id = local.registry.model_ids()["m"]
        for _ in range(3):
            local.router.traffic.inflight.add(shared_id)
        (state,) = local.registry.model_states(cap=2)
        assert (state.inflight, state.queued, state.demand) == (2, 0, 2)
        for _ in range(3):
            local.router.traffic.inflight.remove(shared_id)


@pytest.mark.parametrize(
    ("before", "now", "known_s", "expected"),
    [
        pytest.param((0, 0, 0), (30, 10, 20_000_000), 0, (4, 2), id="two a second, of two seconds each"),
        pytest.param((5, 9, 9_000_000), (20, 9, 9_000_000), 3, (3, 3), id="none served: the mean known before"),
        pytest.param((0, 0, 0), (7, 0, 0), 0, (7, 0), id="none ever served: all are taken to be in progress"),
        pytest.param((5, 0, 0), (5, 2, 3_000_000), 9, (0, 1.5), id="none rejected"),
        pytest.param((9, 9, 9), (0, 0, 0), 2, (0, 2), id="another model has the id now"),
    ],
)
def test_rejected_requests_count_for_as_long_as_they_would_take(
    before: tuple[int, int, int], now: tuple[int, int, int], known_s: float, expected: tuple[float, float]
) -> None:
    """Little's law: a rate times a mean duration is how many are there at once."""
    assert excess(Totals(*before), Totals(*now), 15, known_s) == Excess(*expected)


def test_demand_falls_back_within_a_window(counts: TrafficCounts) -> None:
    """As soon as the last rejection is older than the window, demand is what is there."""
    meter, traffic = DemandMeter(counts), counts.of(MODEL)
    seen = []
    for second in range(60):
        if second < 20:
            traffic.count_rejected()
            traffic.count_served(2.5)
        meter.measure([MODEL], float(second))
        seen.append(counts.excess_milli[MODEL] / 1000)
    assert seen[10:20] == [2.5] * 10
    assert seen[20 + int(WINDOW_S) :] == [0] * (40 - int(WINDOW_S))


def test_new_leader_keeps_what_was_measured_until_it_has_measured(counts: TrafficCounts) -> None:
    """The death of a leader makes no gap, and its successor's window begins when it leads."""
    meter, traffic = DemandMeter(counts), counts.of(MODEL)
    for second in range(10):
        traffic.count_served(4.0)
        traffic.count_rejected()
        meter.measure([MODEL], float(second))
    before = counts.excess_milli[MODEL]
    assert before > 0
    heir = DemandMeter(counts)
    heir.measure([MODEL], 12.0)
    assert counts.excess_milli[MODEL] == before
    traffic.count_rejected()
    heir.measure([MODEL], 13.0)
    assert counts.excess_milli[MODEL] == 4000, "one in a second, of the mean that was known before"
    meter.measure([MODEL], 100.0)  # it leads again, and what it saw long ago is no part of a window
    assert len(meter._samples) == 1


def test_in_flight_saturates_at_the_cap_and_demand_does_not() -> None:
    """The simulation of docs/kubernetes.md: demand is what was offered, and what waits."""
    for _, offered, inflight, queued, shown in demand.rows():
        assert float(inflight) <= demand.CAP
        assert float(shown) == pytest.approx(int(offered) + float(queued), rel=0.1)


def test_demand_of_the_simulation_ends_with_the_load() -> None:
    """Within a window and the time of a request."""
    run = demand.simulation()
    assert run.run(40, 60)[-1].demand > 5 * demand.CAP
    assert run.run(0, 2 * WINDOW_S)[-1] == demand.Shown(0, 0, 0.0)
