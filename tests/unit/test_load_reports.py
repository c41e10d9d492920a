"""The load of `least_load`: own requests as they are now, others' as they were reported, and nothing that is stale."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config import route_schema as routes
from app.errors import UpstreamError
from app.routing import endpoint_rounds, load_reports, load_scrapes
from app.routing.load_formats import ServerLoad
from app.routing.load_reports import UNIT, LoadReports, Reported, load_of, loads_of
from app.routing.load_scrapes import LoadScrapes, scrape
from app.routing.policies import Choice, least_inflight
from app.shared_memory.counters import InflightCounters
from app.upstream.resolver import Resolver
from tests.bench.load_reports import simulate
from tests.support.forks import Parent
from tests.support.scripted_server import Peer, ScriptedServer, answer, answer_and_close

ID, STALE_MS = 3, 3000
PAGE = b"vllm:num_requests_waiting 2\nvllm:num_requests_running 5\nvllm:kv_cache_usage_perc 0.5\n"
RULES = routes.LoadReport(interval_s=1, timeout_s=0.5)


def response(body: bytes) -> bytes:
    """A whole response."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Clock:
    """The reports of one table, and a clock that goes only when told."""

    def __init__(self) -> None:
        self.parent = Parent(limit=1)
        self.now = 1_000_000
        self.counters = InflightCounters(self.parent.table)
        self.counters.attach(0)
        self.reports = LoadReports(self.parent.table, self.counters)

    def read(self) -> Reported:
        return self.reports.read(ID, self.now, STALE_MS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """An endpoint that has reported nothing."""
    clock = Clock()
    clock.parent.slots.occupy(clock.parent.slots.claim())
    monkeypatch.setattr(load_reports, "now_ms", lambda: clock.now)
    yield clock
    clock.parent.close()


def test_own_requests_count_as_they_are_now(clock: Clock) -> None:
    """Of 7 requests at the report 4 were ours, so 3 are others'; what ours do later changes the load at once."""
    for _ in range(4):
        clock.counters.add(ID)
    clock.reports.record(ID, ServerLoad(waiting=0, running=7))
    assert load_of(4, clock.read()) == 7 * UNIT
    assert load_of(1, clock.read()) == 4 * UNIT
    assert load_of(9, clock.read()) == 12 * UNIT


@given(st.integers(0, 50), st.builds(Reported, *[st.integers(0, 50_000)] * 2, st.integers(0, 50), st.integers(0, 1000)))
def test_every_request_that_is_sent_raises_the_load_by_at_least_one(inflight: int, reported: Reported) -> None:
    """So no report, however old, can draw a second request on as strongly as the first: workers can't herd."""
    assert load_of(inflight + 1, reported) >= load_of(inflight, reported) + UNIT


def test_burst_between_two_reports_is_spread() -> None:
    """One endpoint looks idle and three hold 4 each: of 20 requests in a burst it gets 8, the others 4 each."""
    reports = [Reported(is_stale=False)] + [Reported(others=4 * UNIT, is_stale=False)] * 3
    inflight = [0] * 4
    for turn in range(20):
        inflight[least_inflight(Choice((), loads_of(inflight, reports), turn))] += 1
    assert inflight == [8, 4, 4, 4]


def test_full_cache_and_waiting_requests_count(clock: Clock) -> None:
    """Two servers with as many requests: the one whose cache is full, or where requests wait, is more loaded."""
    plain = Reported(others=4 * UNIT, is_stale=False)
    assert load_of(2, plain._replace(cache=1000)) > load_of(2, plain)
    assert load_of(2, plain._replace(waiting=2 * UNIT)) > load_of(2, plain)


def test_stale_report_does_not_count(clock: Clock) -> None:
    """After three intervals what is left is the number of own requests; until then the report counts."""
    assert clock.read().is_stale
    clock.reports.record(ID, ServerLoad(2, 5, 0.5))
    clock.now += STALE_MS
    assert not clock.read().is_stale
    clock.now += 1
    assert clock.read() == Reported()
    assert clock.reports.is_stale(ID, STALE_MS)
    assert load_of(6, clock.read()) == 6 * UNIT


def test_what_was_never_reported_is_stale_however_short_ago_the_machine_started(clock: Clock) -> None:
    """The clock starts at 0 when the machine does, so on a young machine 0 is less than three intervals ago."""
    clock.now = STALE_MS // 2
    assert clock.read() == Reported()


def test_figures_grow_stale_by_themselves(clock: Clock) -> None:
    """A header that tells of the cache alone does not keep an old count of requests alive."""
    clock.reports.record(ID, ServerLoad(2, 5, 0.5))
    clock.now += STALE_MS + 1
    clock.reports.record(ID, ServerLoad(cache=0.25))
    assert clock.read() == Reported(cache=250, is_stale=False)


def test_endpoint_without_a_report_is_as_loaded_as_the_mean() -> None:
    """Taken for idle beside others that report, it would get everything; if none reports, own requests count alone."""
    fresh = [Reported(others=2 * UNIT, is_stale=False), Reported(others=6 * UNIT, is_stale=False)]
    assert loads_of([1, 1, 1], [*fresh, Reported()]) == [3 * UNIT, 7 * UNIT, 5 * UNIT]
    assert loads_of([3, 1], [Reported(), Reported()]) == [3 * UNIT, 1 * UNIT]


def test_id_of_another_endpoint_has_no_report(clock: Clock) -> None:
    """What was reported under an id that is given to another URL is forgotten."""
    clock.reports.record(ID, ServerLoad(2, 5, 0.5))
    clock.reports.reset(ID)
    assert clock.read() == Reported()


def test_page_is_scraped() -> None:
    """From the path that is set, on a port of its own if one is set."""
    with ScriptedServer(answer(response(PAGE))) as server:
        url = f"http://127.0.0.1:{server.port}/base"
        assert scrape(routes.Endpoint(url=url), RULES, Resolver()) == ServerLoad(2, 5, 0.5)
        elsewhere = routes.LoadReport(port=server.port, path="/m")
        assert scrape(routes.Endpoint(url="http://127.0.0.1:1/base"), elsewhere, Resolver()) == ServerLoad(2, 5, 0.5)
    heads = [head.split(b"\r\n")[:2] for _, head in server.seen]
    host = b"host: 127.0.0.1:%d" % server.port
    assert heads == [[b"GET /base/metrics HTTP/1.1", host], [b"GET /m HTTP/1.1", host]]


def drip(peer: Peer) -> None:
    """A page that comes a byte at a time, for ever."""
    peer.read_head()
    peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while not peer.wait_readable(0.02):
        peer.send(b"#")


def flood(peer: Peer) -> None:
    """A page without an end."""
    peer.read_head()
    peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + PAGE)
    peer.send_until_hung_up(b"# nothing\n" * 5000)


@pytest.mark.alone
def test_hostile_pages_end_in_time() -> None:
    """One that drips ends with the deadline. One that never ends is cut, and counts as far as it was read."""
    with ScriptedServer(drip, flood, answer_and_close(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")) as server:
        url = f"http://127.0.0.1:{server.port}"
        with pytest.raises(UpstreamError):
            scrape(routes.Endpoint(url=url), RULES, Resolver())
        assert scrape(routes.Endpoint(url=url), routes.LoadReport(timeout_s=20), Resolver()) == ServerLoad(2, 5, 0.5)
        with pytest.raises(UpstreamError):
            scrape(routes.Endpoint(url=url), RULES, Resolver())


def test_others_run_while_a_page_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every 64 KiB at the latest, also when all of the page is there at once."""
    turns = 0

    def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    page = [b"# nothing\n" * 6000] * 20 + [b"# nothing\n" * 120_000]
    connection = SimpleNamespace(
        exchange=lambda *_: SimpleNamespace(status=200), body=lambda: iter(page), close=lambda: None
    )
    monkeypatch.setattr(load_scrapes, "Connection", lambda *_: connection)
    beside = gevent.spawn(count_turns)
    assert scrape(routes.Endpoint(url="http://127.0.0.1:1"), RULES, Resolver()) == ServerLoad()
    beside.kill()
    assert turns >= 20 + 18


class Scrapes:
    """The scrapes of one endpoint, what they find, and a clock that goes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: ServerLoad | UpstreamError = ServerLoad(1)
        self.url = "http://127.0.0.1:1"
        self.now = 0.0
        self.at: list[float] = []
        self.recorded: list[ServerLoad] = []
        monkeypatch.setattr(load_scrapes, "scrape", self._scrape)
        monkeypatch.setattr(endpoint_rounds, "time", SimpleNamespace(monotonic=lambda: self.now))
        reports: Any = SimpleNamespace(record=lambda _, report: self.recorded.append(report))
        self.shared_id = ID
        registry: Any = SimpleNamespace(reporting=self._reporting, resolver=None, shared_id=lambda url: self.shared_id)
        self.scrapes = LoadScrapes(registry, reports)

    def _reporting(self) -> list[tuple[routes.Endpoint, int, routes.Model]]:
        version = routes.Version(endpoints=(endpoint := routes.Endpoint(url=self.url),))
        return [
            (endpoint, ID, routes.Model(name="m", versions=(version,), load_report=routes.LoadReport(interval_s=2)))
        ]

    def _scrape(self, *_: object) -> ServerLoad:
        self.at.append(self.now)
        if isinstance(self.found, UpstreamError):
            raise self.found
        return self.found

    def run(self, seconds: int) -> list[float]:
        began, self.at = self.now, []
        for _ in range(seconds):
            self.scrapes.run_due(lambda run, *arguments: run(*arguments))
            self.now += 1
        return [at - began for at in self.at]


@pytest.mark.parametrize("failure", [UpstreamError("no"), ServerLoad()])
def test_scrapes_back_off_from_a_server_that_does_not_report(
    monkeypatch: pytest.MonkeyPatch, failure: ServerLoad | UpstreamError
) -> None:
    """Every interval while it reports; then after twice as long each time, up to a minute; then as at first."""
    scrapes = Scrapes(monkeypatch)
    assert scrapes.run(5) == [0, 2, 4]
    scrapes.found = failure
    scrapes.run(1)
    assert scrapes.run(300) == [0, 4, 12, 28, 60, 120, 180, 240]
    scrapes.found = ServerLoad(1)
    assert len(scrapes.run(60)) > 1
    assert scrapes.recorded == [ServerLoad(1)] * len(scrapes.recorded)


def test_report_of_an_endpoint_that_has_gone_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id may be another's by then."""
    scrapes, pending = Scrapes(monkeypatch), list[Any]()
    scrapes.scrapes.run_due(lambda *call: pending.append(call))
    scrapes.url = "http://127.0.0.1:2"
    scrapes.scrapes.run_due(lambda *call: None)
    run, *arguments = pending[0]
    run(*arguments)
    assert scrapes.recorded == []
    assert list(scrapes.scrapes._rounds.asked) == [scrapes.url]


def test_report_of_an_endpoint_that_is_back_under_another_id_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader may not have looked in between."""
    scrapes, pending = Scrapes(monkeypatch), list[Any]()
    scrapes.scrapes.run_due(lambda *call: pending.append(call))
    scrapes.shared_id = ID + 1
    run, *arguments = pending[0]
    run(*arguments)
    assert scrapes.recorded == []


@pytest.mark.slow
def test_reports_gain_where_another_router_loads_the_endpoints_unevenly() -> None:
    """In the simulation of docs/balancing.md: half of the time to the first token at p99, and more requests in time."""
    blind, seeing = (
        [simulate(policy, "sessions", 20, 100, seed) for seed in (1, 2, 3)]
        for policy in ("least_inflight", "least_load")
    )
    assert sum(one.p99_s for one in seeing) < 0.6 * sum(one.p99_s for one in blind)
    assert sum(one.goodput for one in seeing) > 1.1 * sum(one.goodput for one in blind)
