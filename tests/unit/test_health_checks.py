"""Health checks: when they are made, and what their results mean beside what else is known of an endpoint."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.config import route_schema as routes
from app.errors import UpstreamUnreachable
from app.routing import endpoint_health, endpoint_rounds, health_checks
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_records import EndpointRecords
from app.routing.health_checks import CheckResult, HealthChecks
from tests.support.forks import Parent

ID = 3
GOOD, SLOW, REFUSED = CheckResult(status=200), CheckResult("no response", slow=True), CheckResult("503", status=503)


class Bench:
    """The checks of one endpoint, what they find, and a clock that goes only when told."""

    def __init__(self, health: EndpointHealth) -> None:
        self.health = health
        self.now_s = 50_000.0
        self.result: CheckResult | UpstreamUnreachable = GOOD
        self.made_at: list[float] = []
        self.check = routes.HealthCheck(interval_s=5, timeout_s=2, unhealthy_after=3)
        self.url = "http://127.0.0.1:1"
        registry: Any = SimpleNamespace(checks=self._checks, resolver=None, shared_id=lambda url: ID)
        self.errors: list[str] = []
        errors: Any = SimpleNamespace(record=lambda _, text: self.errors.append(text))
        self.checks = HealthChecks(registry, health, errors)

    def _checks(self) -> list[tuple[routes.Endpoint, int, routes.Model]]:
        endpoint = routes.Endpoint(url=self.url)
        version = routes.Version(endpoints=(endpoint,))
        return [(endpoint, ID, routes.Model(name="m", versions=(version,), health_check=self.check))]

    def run(self, seconds: int, result: CheckResult | UpstreamUnreachable, *, serves: bool = False) -> list[float]:
        """Look every second, as the leader does. Returns after how many seconds checks were made."""
        self.result, began, self.made_at = result, self.now_s, []
        for _ in range(seconds):
            if serves:
                self.health.served(ID)
            self.checks.run_due(lambda run, *arguments: run(*arguments))
            self.now_s += 1
        return [at - began for at in self.made_at]

    def up(self) -> bool:
        return self.health.is_up(ID)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The checks of an endpoint that nothing is known of."""
    parent = Parent(limit=1)
    bench = Bench(EndpointHealth(EndpointRecords(parent.table)))

    def check(endpoint: routes.Endpoint, path: str, timeout_s: float, resolver: object) -> CheckResult:
        bench.made_at.append(bench.now_s)
        if isinstance(bench.result, UpstreamUnreachable):
            raise bench.result
        return bench.result

    monkeypatch.setattr(health_checks, "check_endpoint", check)
    monkeypatch.setattr(endpoint_rounds, "time", SimpleNamespace(monotonic=lambda: bench.now_s))
    monkeypatch.setattr(endpoint_health, "now_ms", lambda: int(bench.now_s * 1000))
    yield bench
    parent.close()


def test_first_check_is_made_at_once_and_then_every_interval(bench: Bench) -> None:
    """A healthy endpoint is up after the first check."""
    assert bench.run(1, GOOD) == [0]
    assert bench.up()
    assert bench.run(12, GOOD) == [4, 9]


def test_checks_are_made_every_second_until_something_is_known(bench: Bench) -> None:
    """A server that starts a little later than the router costs no whole interval; one that is down does."""
    assert bench.run(12, REFUSED) == [0, 1, 2, 7]
    assert bench.run(5, GOOD) == [0]
    assert bench.up()


def test_checks_that_fail_in_a_row_make_it_unhealthy(bench: Bench) -> None:
    """Three, as it is set."""
    bench.run(5, GOOD)
    bench.run(10, SLOW)
    assert bench.up()
    bench.run(5, SLOW)
    assert not bench.up()


def test_slow_check_is_no_failure_while_requests_are_served(bench: Bench) -> None:
    """The endpoint is too busy to respond to the check; an unhealthy one becomes healthy so."""
    bench.run(5, GOOD)
    bench.run(60, SLOW, serves=True)
    assert bench.up()
    bench.run(60, SLOW)
    assert not bench.up()
    bench.run(5, SLOW, serves=True)
    assert bench.up()


def test_check_that_says_no_counts_whatever_else_is_served(bench: Bench) -> None:
    """An endpoint that is shutting down says so while it still finishes requests, and gets no new ones."""
    bench.run(5, GOOD)
    bench.run(15, REFUSED, serves=True)
    assert not bench.up()


def test_path_that_is_not_there_is_warned_of_once(bench: Bench) -> None:
    """404 counts as healthy, but may mean that the URL is wrong; not where the route names the path itself."""
    with capture_logs() as log:
        bench.run(30, CheckResult(status=404))
        assert bench.up()
    assert [(line["log_level"], line["path"]) for line in log] == [("warning", "/v1/models")]
    bench.check = routes.HealthCheck(path="/health")
    with capture_logs() as log:
        bench.run(30, CheckResult(status=404))
    assert log == []


@pytest.mark.parametrize("result", [GOOD, CheckResult(status=404), UpstreamUnreachable("no address")])
def test_endpoint_that_goes_is_forgotten(bench: Bench, result: CheckResult | UpstreamUnreachable) -> None:
    """However many endpoints come and go, only those of the routes take memory; one that comes back is new."""
    bench.url = "http://127.0.0.1:0"
    with capture_logs() as before:
        bench.run(30, result)
    for number in range(1, 100):
        bench.url = f"http://127.0.0.1:{number}"
        bench.run(2, result)
    assert list(bench.checks._rounds.asked) == [bench.url]
    bench.url = "http://127.0.0.1:0"
    with capture_logs() as after:
        assert bench.run(1, result) == [0]
        bench.run(29, result)
    assert [line["event"] for line in after] == [line["event"] for line in before], "it is warned of again"


def test_result_for_an_endpoint_that_has_gone_is_dropped(bench: Bench) -> None:
    """Its id may be another's by then. The same URL that came back has checks of its own."""
    pending: list[Any] = []
    bench.checks.run_due(lambda *call: pending.append(call))
    bench.url = "http://127.0.0.1:2"
    bench.checks.run_due(lambda *call: None)
    bench.url = "http://127.0.0.1:1"
    bench.checks.run_due(lambda *call: None)
    run, *arguments = pending[0]
    run(*arguments)
    assert not bench.up()
