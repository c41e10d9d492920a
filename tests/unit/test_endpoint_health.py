"""What is known of an endpoint's health: by checks, by requests, or not at all; and when checks are ignored."""

from collections.abc import Iterator

import pytest

from app.routing import endpoint_health
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_records import EndpointRecords
from app.shared_memory.table import SharedTable
from tests.support.stopped_clock import BEGIN_MS, under_stopped_clock

ID = 3


class Bench:
    """EndpointHealth and a clock that goes only when told."""

    def __init__(self, table: SharedTable) -> None:
        self.records = records = EndpointRecords(table)
        self.health = EndpointHealth(records)
        self.now = BEGIN_MS

    def available(self, shared_id: int = ID) -> bool:
        return self.health.is_available(shared_id, self.now)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """EndpointHealth of which nothing is known, and its clock."""
    with under_stopped_clock(Bench, monkeypatch, endpoint_health) as bench:
        yield bench


def test_unknown_endpoint_gets_requests_but_is_not_up(bench: Bench) -> None:
    """Unknown is not unusable, and not healthy."""
    assert bench.available()
    assert not bench.health.is_up(ID)
    assert not bench.health.is_known(ID)


def test_failed_checks_make_it_known_but_not_up(bench: Bench) -> None:
    """Unhealthy: neither available nor up. Only a change returns True, and the neighbours are not concerned."""
    assert bench.health.set_healthy(ID, healthy=False)
    assert not bench.health.set_healthy(ID, healthy=False)
    assert (bench.available(), bench.health.is_up(ID), bench.health.is_known(ID)) == (False, False, True)
    assert bench.available(4)


def test_successful_check_makes_it_up(bench: Bench) -> None:
    """The first, and any after failures."""
    assert not bench.health.set_healthy(ID, healthy=True)
    assert bench.health.is_up(ID)
    bench.health.set_healthy(ID, healthy=False)
    assert bench.health.set_healthy(ID, healthy=True)
    assert bench.health.is_up(ID)


def test_served_request_makes_it_up_unless_its_checks_fail(bench: Bench) -> None:
    """A request is as good as a check for an endpoint that nothing is known of, however long ago it was."""
    bench.health.served(ID)
    bench.now += 10_000_000
    assert bench.health.is_up(ID)
    bench.health.set_healthy(ID, healthy=False)
    assert not bench.health.is_up(ID)


def test_served_lately_has_an_end(bench: Bench) -> None:
    """Within the time, to the millisecond; an endpoint that never served has not."""
    assert not bench.health.has_served(ID, 10**12)
    bench.health.served(ID)
    bench.now += 1000
    assert bench.health.has_served(ID, 1000)
    assert not bench.health.has_served(ID, 999)


def test_endpoint_whose_checks_are_slow_seems_to_serve_once_it_has_served(bench: Bench) -> None:
    """However long ago: only requests can show that it hangs. One that never served has shown nothing."""
    bench.health.set_healthy(ID, healthy=False, slow=True)
    assert not bench.health.seems_to_serve(ID)
    bench.health.served(ID)
    bench.now += 10_000_000
    assert bench.health.seems_to_serve(ID)


@pytest.mark.parametrize("served_ms_ago", [0, endpoint_health.RECENTLY_MS])
def test_endpoint_whose_checks_fail_seems_to_serve_for_a_while(bench: Bench, served_ms_ago: int) -> None:
    """A refused connection or an error is a word about the endpoint, which only a later request overrules."""
    bench.health.set_healthy(ID, healthy=False, slow=True)
    bench.health.served(ID)
    bench.health.set_healthy(ID, healthy=False)
    bench.now += served_ms_ago
    assert bench.health.seems_to_serve(ID)
    bench.now += endpoint_health.RECENTLY_MS - served_ms_ago + 1
    assert not bench.health.seems_to_serve(ID)


@pytest.mark.parametrize(
    ("pool", "unhealthy", "threshold", "panics"),
    [
        (1, 1, 0.5, True),
        (2, 1, 0.5, False),
        (2, 2, 0.5, True),
        (3, 1, 0.5, False),
        (3, 2, 0.5, True),
        (4, 2, 0.5, False),
        (4, 3, 0.5, True),
        (4, 4, 0.0, False),
        (4, 1, 1.0, True),
        (4, 0, 1.0, False),
    ],
)
def test_pool_panics_below_the_threshold(
    bench: Bench, pool: int, unhealthy: int, threshold: float, panics: bool
) -> None:
    """Exactly the threshold is no panic, and with 0 there is none."""
    for shared_id in range(unhealthy):
        bench.health.set_healthy(shared_id, healthy=False)
    assert bench.health.panics(range(pool), threshold, bench.now) is panics


def test_ejected_endpoints_count_towards_panic(bench: Bench) -> None:
    """One of two is unhealthy and the other one ejected: the unhealthy one is better than nothing."""
    bench.health.set_healthy(0, healthy=False)
    bench.records.unavailable_until_ms[1] = bench.now + 1
    assert bench.health.panics((0, 1), 0.5, bench.now)
    assert not bench.health.panics((0, 1), 0.5, bench.now + 1)
