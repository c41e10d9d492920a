"""What live events say of endpoints: all of them at first, then those that have changed, and always enough."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from app import native
from app.api.admin import live
from app.api.admin.live import LiveFeed
from app.api.admin.live_endpoints import LiveEndpoints
from app.cli.top import whole
from app.observability.live_figures import EndpointRates
from app.observability.metrics import Metrics, SharedState
from app.routing.endpoint_report import EndpointReport
from app.routing.last_errors import LastError
from tests.support.local_router import LocalRouter
from tests.support.routed_router import RoutedRouter

A, B, C = "http://a", "http://b", "http://c"
KNOWN = EndpointRates({"requests_per_s": 0.0, "failures_per_s": 0.0})
UNKNOWN = EndpointRates({"requests_per_s": None, "failures_per_s": None})
STATE = SharedState(1, 2, 3, 4, 0, 0, ())
HEALTHY: dict[str, Any] = {
    "state": "healthy",
    "why": None,
    "until_ms": 0,
    "in_flight": 0,
    "load": None,
    "last_error": None,
}


def report(url: str, **members: Any) -> EndpointReport:
    """What is known of an endpoint; by itself it is idle."""
    return EndpointReport(id=ord(url[-1]), url=url, models=["m"], **{**HEALTHY, **members})


def busy(**rates: float) -> EndpointRates:
    """The rates where only these endpoints get requests: so many a second, none of which fails."""
    return EndpointRates(
        KNOWN.idle, {f"http://{name}": {**KNOWN.idle, "requests_per_s": rates[name]} for name in rates}
    )


class Looks:
    """Looks at endpoints that the test makes up."""

    def __init__(self, *reports: EndpointReport, rates: EndpointRates = KNOWN) -> None:
        self.reports = reports
        self.live = LiveEndpoints(lambda: self.reports)
        self.live.look(rates)

    def again(self, *reports: EndpointReport, rates: EndpointRates = KNOWN) -> list[str] | None:
        """Look again. Returns the URLs of those that have changed, None for all."""
        self.reports = reports
        self.live.look(rates)
        return None if self.live.changed_wholly else [shown["url"] for shown in self.live.changed()]


def test_first_look_is_whole() -> None:
    """So is the one that first knows rates: those of every endpoint are no longer unknown."""
    looks = Looks(report(A), report(B), rates=UNKNOWN)
    assert looks.live.changed_wholly
    assert [shown["requests_per_s"] for shown in looks.live.all()] == [None, None]
    assert looks.again(report(A), report(B)) is None
    assert [shown["requests_per_s"] for shown in looks.live.all()] == [0, 0]
    assert looks.again(report(A), report(B)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"in_flight": 1},
        {"state": "unhealthy", "why": "its health checks fail"},
        {"until_ms": 1},
        {"load": {"waiting": 1.0}},
        {"last_error": LastError("refused", 5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_has_changed_is_shown_and_nothing_else(change: dict[str, Any]) -> None:
    """When it changes, and when it changes back."""
    looks = Looks(report(A), report(B), report(C))
    assert looks.again(report(A), report(B, **change), report(C)) == [B]
    assert looks.again(report(A), report(B, **change), report(C)) == []
    assert looks.again(report(A), report(B), report(C)) == [B]


def test_rates_that_change_are_a_change() -> None:
    """Also the last one, to nothing."""
    looks = Looks(report(A), report(B))
    for rates, expected in ((busy(b=1.5), [B]), (busy(b=1.5), []), (busy(a=2, b=1.5), [A]), (busy(a=2), [B])):
        assert looks.again(report(A), report(B), rates=rates) == expected
    assert looks.live.changed()[0]["requests_per_s"] == 0
    assert looks.again(report(A), report(B)) == [A]


@pytest.mark.parametrize("urls", [[A], [A, B, C], [B, A], [A, C], []])
def test_look_is_whole_when_endpoints_come_or_go(urls: list[str]) -> None:
    """A reader who is told of changes only could not know that one is gone, or where a new one stands."""
    looks = Looks(report(A), report(B))
    assert looks.again(*map(report, urls)) is None
    assert [shown["url"] for shown in looks.live.all()] == urls
    assert looks.again(*map(report, urls)) == []


def test_time_that_passes_is_no_change() -> None:
    """What lasts, and what was long ago, is told once: readers have a clock of their own."""
    try:
        native.stop_clock(10_000_000_000)
        lasting = {"state": "ejected", "until_ms": 12_500, "last_error": LastError("refused", 9_000)}
        looks = Looks(report(A, **lasting))
        native.stop_clock(11_000_000_000)
        assert looks.again(report(A, **lasting)) == []
        (shown,) = looks.live.all()
        assert (shown["until_s"], shown["last_error"]["age_s"]) == (1.5, 2)
    finally:
        native.stop_clock(-1)


class Changing:
    """A feed of endpoints that change at random, and what they are by now."""

    def __init__(self, metrics: Metrics, seed: int) -> None:
        self._random = random.Random(seed)
        self.reports: dict[str, EndpointReport] = {url: report(url) for url in (A, B, C)}
        self.live = LiveFeed(metrics, lambda: STATE, lambda _: {}, self._read)

    def _read(self) -> tuple[EndpointReport, ...]:
        url = self._random.choice((A, B, C))
        if self._random.random() < 0.2 and len(self.reports) > 1:
            self.reports.pop(url, None)
        elif self._random.random() < 0.7:
            self.reports[url] = report(url, in_flight=self._random.randrange(5))
        return tuple(self.reports.values())


def content(event: bytes) -> dict[str, Any]:
    """What an event says."""
    found: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
    return found


def counts(event: dict[str, Any]) -> list[tuple[str, int]]:
    """The in-flight counts that an event has, in its order."""
    return [(each["url"], each["in_flight"]) for each in event["endpoints"]]


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """Metrics of a router; events come every few milliseconds."""
    monkeypatch.setattr(live, "INTERVAL_S", 0.002)
    with LocalRouter(tmp_path) as local:
        yield local.router.metrics


def end(*watchers: Any) -> None:
    """Let these watch no more."""
    for events in watchers:
        events.close()


@pytest.mark.parametrize("seed", range(20))
def test_every_watcher_knows_every_endpoint(metrics: Metrics, seed: int) -> None:
    """Whatever changes, and whichever events a watcher misses: with what it was sent, it knows what all of them are."""
    feed, chance = Changing(metrics, seed), random.Random(seed)
    watchers = [feed.live.events() for _ in range(3)]
    known = []
    for events in watchers:
        next(events)  # the head
        known.append(whole(map(content, events)))
    partial = feed.live.events()
    next(partial)
    for _ in range(40):
        sent = next(partial)
        said = content(sent)
        for each in chance.sample(known, chance.randrange(1, 4)):
            told = next(each)
            assert told["time"] == said["time"]
            assert counts(told) == [(one.url, one.in_flight) for one in feed.reports.values()]
    end(partial, *watchers)


def test_event_is_made_once_for_those_who_saw_the_one_before_and_once_for_the_others(metrics: Metrics) -> None:
    """A watcher that missed an event is sent all endpoints; so is a new one, and these get the very same bytes."""
    feed = LiveFeed(metrics, lambda: STATE, lambda _: {}, lambda: (report(A), report(B)))
    steady, late = feed.events(), feed.events()
    next(steady)
    next(late)
    next(late)
    seen = [next(steady) for _ in range(4)]
    new = feed.events()
    next(new)
    whole_ones = next(late), next(new)
    assert whole_ones[0] is whole_ones[1]
    complete = [content(event)["endpoints_complete"] for event in (*seen, *whole_ones)]
    assert complete == [True, True, False, False, True, True]  # the second is the first that knows rates
    assert counts(content(seen[-1])) == []
    assert counts(content(whole_ones[0])) == [(A, 0), (B, 0)]
    assert content(seen[-1])["time"] == content(whole_ones[0])["time"]
    assert not content(next(late))["endpoints_complete"]
    end(steady, late, new)


def test_who_begins_to_watch_again_is_told_everything(metrics: Metrics) -> None:
    """Nothing of the time before is taken for known, and no event of that time is sent."""
    feed = LiveFeed(metrics, lambda: STATE, lambda _: {}, lambda: (report(A),))
    first_times = []
    for _ in range(2):
        events = feed.events()
        next(events)
        first, *_ = read = [content(next(events)) for _ in range(4)]
        assert (first["endpoints_complete"], first["requests_per_s"]) == (True, None)
        assert not read[-1]["endpoints_complete"]
        first_times.append(read[0]["time"])
        last_time = read[-1]["time"]
        end(events)
        with gevent.Timeout(5):
            while feed._produces:
                gevent.sleep(0.001)
    assert first_times[0] < first_times[1] <= last_time


def test_reports_are_those_of_the_current_routes(tmp_path: Path) -> None:
    """What was made of the routes is made again when they change, and what is known of an endpoint is always new."""
    with RoutedRouter(tmp_path, {"name": "m", "endpoints": [A, B]}) as routed:
        reports: Callable[[], list[EndpointReport]] = lambda: list(routed.router.models.endpoints.all())  # noqa: E731
        assert [(each.url, each.models) for each in reports()] == [(A, ["m"]), (B, ["m"])]
        errors = routed.router.models.endpoints._shared.last_errors
        for text in ("one", "two", "three"):  # perhaps within one millisecond
            errors.record(reports()[1].id, text)
            found = reports()[1].last_error
            assert found is not None
            assert found.text == text
        models = [{"name": name, "endpoints": [B, C]} for name in ("n", "m")]
        routed.publish(*models)
        assert [(each.url, each.models) for each in reports()] == [(B, ["n", "m"]), (C, ["n", "m"])]
        assert reports()[0].last_error == found
