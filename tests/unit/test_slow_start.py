"""Slow start: from when it counts, and how much an endpoint gets meanwhile."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.config import route_schema as routes
from app.routing import endpoint_health, endpoint_pool, endpoint_records, outlier_detection
from app.routing.endpoint import Endpoint
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_pool import EndpointPool
from app.routing.endpoint_records import EndpointRecords
from app.routing.outlier_detection import Ended, Outcome, OutlierDetector, PoolRules
from app.routing.route_store import RouteStore
from app.shared_memory.counters import InflightCounters
from tests.support.forks import Parent


class Bench:
    """A pool of two endpoints, and a clock that goes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parent = Parent(limit=1)
        self.now = 1_000_000
        for module in (endpoint_health, endpoint_pool, endpoint_records, outlier_detection):
            monkeypatch.setattr(module, "now_ms", lambda: self.now)
        table = self.parent.table
        self.records = EndpointRecords(table)
        self.counters = InflightCounters(table)
        self.counters.attach(self.parent.slots.claim().slot)
        self.health, self.outliers = EndpointHealth(self.records), OutlierDetector(self.records)
        self.store = RouteStore(table, self.counters, (self.records,), self.records.appear)

    def pool(self, slow_start_s: float = 10, weights: tuple[int, int] = (1, 1), **members: Any) -> EndpointPool:
        """A pool whose endpoints have the ids 0 and 1."""
        urls = ("http://a:1", "http://b:1")
        endpoints = tuple(routes.Endpoint(url=url, weight=w) for url, w in zip(urls, weights, strict=True))
        version = routes.Version(endpoints=endpoints)
        model = routes.Model(name="m", versions=(version,), slow_start_s=slow_start_s, **members)
        shared: Any = SimpleNamespace(
            table=self.parent.table, counters=self.counters, health=self.health, outliers=self.outliers,
            back_offs=SimpleNamespace(until_ms=[0] * 4), loads=None, prefixes=None,
        )  # fmt: skip
        none: Any = None
        ours = [Endpoint(url, n, n, none, "", "") for n, url in enumerate(urls)]
        return EndpointPool(model, version, ours, none, shared, self.store.generation)

    def send(self, pool: EndpointPool, count: int) -> list[int]:
        """Begin so many attempts, none of which ends. Returns how many each endpoint has of them."""
        before = [self.counters.total(n) for n in (0, 1)]
        for _ in range(count):
            assert pool.choose(b"") is not None
        return [self.counters.total(n) - b for n, b in enumerate(before)]

    def share(self, pool: EndpointPool) -> list[int]:
        """How 110 requests are shared now. They end afterwards."""
        got = self.send(pool, 110)
        for shared_id, count in enumerate(got):
            for _ in range(count):
                self.counters.remove(shared_id)
        return got


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Two endpoints that nothing is known of."""
    bench = Bench(monkeypatch)
    yield bench
    bench.parent.close()


def becomes_healthy(bench: Bench) -> None:
    """Its health checks succeed again."""
    bench.health.set_healthy(1, healthy=False)
    bench.now += 60_000
    bench.health.set_healthy(1, healthy=True)


def ends_ejection(bench: Bench) -> None:
    """Its trial succeeds."""
    rules = PoolRules([0, 1], routes.Ejection(consecutive_failures=1, base_s=1))
    bench.outliers.end(1, Ended(Outcome.FAILURE), rules)
    bench.now += 60_000
    assert bench.outliers.begin(1, bench.now)
    bench.outliers.end(1, Ended(Outcome.SUCCESS, trial=True), rules)


def appears(bench: Bench) -> None:
    """The routes have it, and did not before."""
    bench.store.publish(b"1", ["http://a:1"])
    bench.now += 60_000
    bench.store.publish(b"2", ["http://a:1", "http://b:1"])
    ids = bench.counters.ids(["http://a:1", "http://b:1"])
    assert ids == {"http://a:1": 0, "http://b:1": 1}


def comes_back(bench: Bench) -> None:
    """It was gone from the routes for a while, and has kept its id."""
    appears(bench)
    bench.store.publish(b"0", ["http://a:1"])
    bench.now += 60_000
    bench.store.publish(b"3", ["http://a:1", "http://b:1"])


@pytest.mark.parametrize("happens", [becomes_healthy, ends_ejection, appears, comes_back])
def test_weight_grows_after_an_endpoint_comes_into_use(bench: Bench, happens: Any) -> None:
    """From a tenth to the whole in `slow_start_s`, whatever the reason; the worker that chooses needs no memory."""
    happens(bench)
    at = {0: [100, 10], 500: [100, 10], 5000: [73, 37], 9999: [55, 55], 60_000: [55, 55]}
    for after, share in at.items():
        bench.now += after
        got = bench.share(bench.pool())
        assert abs(got[1] - share[1]) <= 1, after
        bench.now -= after
    assert bench.share(bench.pool(slow_start_s=0)) == [55, 55]


def test_first_routes_start_at_full_weight(bench: Bench) -> None:
    """All endpoints are equally new then, and one that is checked first is no better for it."""
    bench.store.publish(b"1", ["http://a:1", "http://b:1"])
    assert bench.share(bench.pool()) == [55, 55]


def test_routes_that_change_elsewhere_start_nothing_again(bench: Bench) -> None:
    """An endpoint that stays in the routes keeps its weight."""
    bench.store.publish(b"1", ["http://a:1", "http://b:1"])
    bench.store.publish(b"2", ["http://a:1", "http://b:1", "http://c:1"])
    assert bench.share(bench.pool()) == [55, 55]


def test_slow_start_is_a_part_of_the_weight(bench: Bench) -> None:
    """An endpoint of weight 10 that has just come into use counts as one of weight 1."""
    becomes_healthy(bench)
    assert bench.share(bench.pool(weights=(1, 10))) == [55, 55]
    bench.now += 10_000
    assert bench.share(bench.pool(weights=(1, 10))) == [10, 100]


def test_pool_without_weights_is_chosen_from_as_before(bench: Bench) -> None:
    """Equal weights without slow start cost nothing: no weight is looked at."""
    assert not bench.pool(slow_start_s=0, weights=(7, 7))._weighs
    assert bench.pool(slow_start_s=0, weights=(7, 8))._weighs
