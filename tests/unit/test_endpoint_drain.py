"""Draining an endpoint, why an endpoint was not chosen, and the last errors of endpoints."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config.route_schema import Ejection
from app.native import now_ms
from app.routing.attempt import Attempt
from app.routing.back_off import pair
from app.routing.candidates import REASONS, Reach, seen_of
from app.routing.endpoint_pool import EndpointPool
from app.routing.endpoint_records import EndpointRecords
from app.routing.endpoint_report import EndpointReport
from app.routing.last_errors import LastErrors
from app.routing.outlier_detection import Ended, Outcome, PoolRules
from app.shared_memory.table import SharedTable, name_hash
from tests.support.local_router import LocalRouter

A, B, C, D = (f"http://{name}.test:8000" for name in "abcd")


class Routed:
    """A router in front of three endpoints that nothing is sent to."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "routes.json"
        self.publish(A, B, C)
        self.local = LocalRouter(folder, ROUTES_FILE=str(self.file)).start_worker()
        self.models = self.local.router.models

    def publish(self, *urls: str) -> None:
        """Write routes with these endpoints."""
        model = {"name": "m", "endpoints": urls, "health_check": {"interval_s": 5, "panic_threshold": 0.5}}
        self.file.write_text(json.dumps({"models": [model]}))

    @property
    def shared(self) -> Any:
        return self.models.registry._shared

    @property
    def pool(self) -> EndpointPool:
        """That of the model."""
        model: Any = self.models.registry.find("m").model
        pool: EndpointPool = model._pools[0]
        return pool

    def id_of(self, url: str) -> int:
        """The id of an endpoint."""
        shared_id = self.models.registry.shared_id(url)
        assert shared_id is not None
        return shared_id

    def pair_of(self, url: str) -> int:
        """The index of an endpoint's back-off for the model."""
        return pair(self.id_of(url), self.models.registry.model_ids()["m"])

    def drain(self, url: str, *, draining: bool = True) -> EndpointReport | None:
        """Drain or undrain an endpoint."""
        return self.models.endpoints.set_draining(self.id_of(url), draining=draining)

    def chosen(self, reach: Reach = Reach.HEALTHY, tried: tuple[int, ...] = ()) -> Attempt | None:
        """The attempt of one choice, which is over at once."""
        attempt = self.pool.choose(b"", tried, reach)
        if attempt is not None:
            attempt.finish(Outcome.ABANDONED, None)
        return attempt

    def eject(self, url: str) -> None:
        """Have an endpoint fail once too often."""
        shared_id = self.id_of(url)
        rules = PoolRules([shared_id], Ejection(consecutive_failures=1, max_share=1))
        assert self.shared.outliers.end(shared_id, Ended(Outcome.FAILURE), rules)


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Routed]:
    """A router with its routes."""
    routed = Routed(tmp_path)
    yield routed
    routed.local.close()


@pytest.mark.parametrize("reach", list(Reach))
def test_draining_endpoint_is_chosen_in_no_case(reach: Reach, routed: Routed) -> None:
    """Not where the others back off, nor in panic, nor if it is the last one."""
    assert routed.drain(A) is not None
    for _ in range(6):
        attempt = routed.chosen(reach)
        assert attempt is not None
        assert attempt.endpoint.url != A
    for url in (B, C):
        routed.shared.health.set_healthy(routed.id_of(url), healthy=False)
    attempt = routed.chosen(reach)
    assert attempt is None or (reach & Reach.PANIC and attempt.endpoint.url != A)
    for url in (B, C):
        routed.drain(url)
    assert routed.chosen(reach) is None
    assert not routed.pool.is_usable()
    assert routed.pool.retry_after() is None


def test_request_about_a_response_of_a_draining_endpoint_goes_there(routed: Routed) -> None:
    """Only that endpoint has the response; a request that merely prefers it goes elsewhere."""
    routed.drain(A)
    assert routed.pool.begin_at(name_hash(A), False) is None
    attempt = routed.pool.begin_at(name_hash(A), True)
    assert attempt is not None
    attempt.finish(Outcome.ABANDONED, None)


def test_draining_is_no_reason_for_panic(routed: Routed) -> None:
    """Endpoints that were drained, and are then shut down, leave the health checks of the others as they were; nor do
    they hide that all others fail theirs."""
    health, ids = routed.shared.health, [routed.id_of(url) for url in (A, B, C)]
    for url in (A, B):
        routed.drain(url)
        health.set_healthy(routed.id_of(url), healthy=False)
    health.set_healthy(ids[2], healthy=True)
    assert not health.panics(ids, 0.5, now_ms())
    attempt = routed.chosen()
    assert attempt is not None
    assert attempt.endpoint.url == C
    health.set_healthy(ids[0], healthy=True)
    routed.drain(B, draining=False)
    health.set_healthy(ids[2], healthy=False)
    assert health.panics(ids, 1 / 3, now_ms())


def test_draining_endpoints_count_as_out_for_ejection(routed: Routed) -> None:
    """While one of two drains, the other one is not ejected if no more than half may be out."""
    routed.drain(A)
    ids = [routed.id_of(A), routed.id_of(B)]
    rules = PoolRules(ids, Ejection(consecutive_failures=1, max_share=0.5))
    assert not routed.shared.outliers.end(ids[1], Ended(Outcome.FAILURE), rules)
    routed.drain(A, draining=False)
    assert routed.shared.outliers.end(ids[1], Ended(Outcome.FAILURE), rules)


def test_drain_belongs_to_the_url_and_not_to_its_id(routed: Routed) -> None:
    """It stays through a reload, and ends when the URL leaves: whoever comes with its id or its name does not drain."""
    routed.drain(A)
    routed.publish(A, B)
    routed.models.publisher.republish()
    assert routed.shared.health.is_draining(routed.id_of(A))
    before, generation = routed.id_of(A), routed.models.registry.generation
    routed.publish(B)
    routed.models.publisher.republish()
    assert not routed.models.endpoints._drain.set(before, A, generation + 1, draining=True)
    assert routed.models.endpoints.set_draining(before, draining=True) is None
    routed.publish(A, B)
    routed.models.publisher.republish()
    assert not routed.shared.health.is_draining(routed.id_of(A))
    assert routed.models.endpoints.set_draining(511, draining=True) is None


def test_endpoints_are_of_one_document(routed: Routed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes that are published while endpoints are read change nothing halfway, though a new URL has no model yet."""
    registry = routed.models.registry
    read_ids, published = registry.model_ids, [(B, C), (C, D)]

    def ids_read_as_others_are_published() -> dict[str, int]:
        ids = read_ids()
        if published:
            routed.publish(*published.pop())
            routed.models.publisher.republish()
        return ids

    monkeypatch.setattr(registry, "model_ids", ids_read_as_others_are_published)
    assert [report.url for report in routed.models.endpoints.all()] == [B, C]


def test_undrained_endpoint_starts_slowly(routed: Routed) -> None:
    """It may be another program by now: it counts as in use since then."""
    routed.drain(A)
    began = now_ms()
    routed.drain(A, draining=False)
    assert routed.shared.health.in_use_since(routed.id_of(A)) >= began
    EndpointRecords(routed.local.router.table).in_use_since_ms[routed.id_of(A)] = 7
    routed.drain(A, draining=False)  # it does not drain, so nothing begins
    assert routed.shared.health.in_use_since(routed.id_of(A)) == 7


def test_every_reason_that_keeps_an_endpoint_out_is_noted(routed: Routed) -> None:
    """What a choice has seen has the reason of each endpoint that was passed over, and the loads of all."""
    shared = routed.shared
    attempt = routed.pool.choose(b"")
    assert attempt is not None
    assert [seen_of(seen).out for seen in attempt.seen] == [None] * 3
    first = attempt.endpoint.url
    others = [url for url in (A, B, C) if url != first]
    by_reason: dict[str, Callable[[str], object]] = {
        "draining": routed.drain,
        "unhealthy": lambda url: shared.health.set_healthy(routed.id_of(url), healthy=False),
        "backing off": lambda url: shared.back_offs.refused(routed.pair_of(url), 60),
        "ejected": routed.eject,
    }
    undo: dict[str, Callable[[str], object]] = {
        "draining": lambda url: routed.drain(url, draining=False),
        "unhealthy": lambda url: shared.health.set_healthy(routed.id_of(url), healthy=True),
        "backing off": lambda url: shared.back_offs.until_ms.__setitem__(routed.pair_of(url), 0),
        "ejected": lambda url: None,
    }
    for reason, cause in by_reason.items():
        cause(others[0])
        one = routed.chosen(tried=(attempt.endpoint.shared_id,))
        assert one is not None
        assert one.endpoint.url == others[1]
        seen = dict(zip((A, B, C), map(seen_of, one.seen), strict=True))
        assert {seen[first].out, seen[others[0]].out, seen[others[1]].out} == {"tried before", reason, None}
        assert [seen[url].in_flight for url in (first, *others)] == [1, 0, 0]
        assert reason in REASONS
        undo[reason](others[0])
    pool = routed.pool
    routed.publish(first)
    routed.models.publisher.republish()
    assert [seen_of(seen).out for seen in pool.no_attempt().seen].count("not served any more") == 2
    attempt.finish(Outcome.ABANDONED, None)


def test_last_errors_are_kept_apart_and_cut(routed: Routed) -> None:
    """Each endpoint has its own, the newest one, cut at a whole character; a new name of the id has none."""
    table: SharedTable = routed.local.router.table
    errors = LastErrors(table)
    assert errors.of(3) is None
    errors.record(3, "the first one, which is longer")
    errors.record(3, "ü" * 500)
    errors.record(4, "short")
    third, fourth = errors.of(3), errors.of(4)
    assert third is not None
    assert fourth is not None
    assert set(third.text) <= {"ü", "\ufffd"}
    assert 100 < len(third.text) < 130
    assert (fourth.text, now_ms() - fourth.at_ms < 20_000) == ("short", True)
    errors.reset(3)
    assert errors.of(3) is None
