"""Model servers that are gone, slow, broken, busy or unhealthy: what clients see, what is retried, what is left out."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import requests

from tests.support.clients import CHAT, Crowd, chat
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Answer, Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
NO_CHECKS = {"interval_s": 0}
STEADY = {"consecutive_failures": 1000, "failure_rate": 1, "min_requests": 1_000_000}
"""Ejects nobody."""


def model(*upstreams: Upstream | str, **members: Any) -> dict[str, Any]:
    """A model of a routes file, without health checks and ejection unless they are given."""
    urls = [upstream if isinstance(upstream, str) else upstream.url for upstream in upstreams]
    return {"name": "m", "endpoints": urls, "health_check": NO_CHECKS, "ejection": STEADY, **members}


def nobody() -> str:
    """The URL of a server that isn't there."""
    return f"http://127.0.0.1:{free_port()}"


def code_of(answer: requests.Response) -> tuple[int, str]:
    """Status and code of an error."""
    return answer.status_code, answer.json()["error"]["code"]


def is_up(router: Router, upstream: Upstream) -> bool:
    """What the metrics say of an endpoint."""
    return router.metrics()[f'router_endpoint_up{{endpoint="{upstream.url}"}}'] == 1


class Pair(NamedTuple):
    """A router and both servers of its model."""

    router: Router
    upstreams: tuple[Upstream, Upstream]

    def answer(self, answer: Answer) -> None:
        """Have both servers do this from now on."""
        for upstream in self.upstreams:
            upstream.reset(answer)

    def seen(self) -> int:
        """How many requests have reached a server since then."""
        return sum(len(upstream.seen) for upstream in self.upstreams)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Shared by tests of answers that change nothing for the requests that follow."""
    folder = tmp_path_factory.mktemp("pair")
    path = folder / "routes.json"
    with Upstream() as one, Upstream() as other:
        path.write_text(json.dumps({"models": [model(one, other)]}))
        with Router(folder, ROUTES_FILE=path) as router:
            yield Pair(router, (one, other))


def test_no_connection_is_tried_elsewhere(start: Start, serve: Serve, routes: Routes) -> None:
    """Nobody saw the request, so another endpoint gets it; with none left it is a 502 that says so."""
    good = serve()
    router = start(ROUTES_FILE=routes(model(nobody(), nobody(), good)))
    assert {chat(router).status_code for _ in range(12)} == {200}
    assert len(good.seen) == 12
    assert router.metrics()['router_retries_total{reason="unreachable"}'] >= 1
    router = start(ROUTES_FILE=routes(model(nobody(), nobody())))
    assert code_of(chat(router)) == (502, "upstream_unreachable")


@pytest.mark.parametrize(
    ("timeouts", "words"),
    [({"first_byte_s": 0.2}, "no first byte"), ({"total_s": 3, "connect_s": 2}, "in total")],
)
def test_time_that_runs_out_is_not_tried_again(
    start: Start, serve: Serve, routes: Routes, timeouts: dict[str, float], words: str
) -> None:
    """504, and no other endpoint gets the request: the first may still be working on it."""
    over = threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        if reply.wait_hung_up():
            over.set()

    slow = [serve(answer) for _ in range(2)]
    router = start(ROUTES_FILE=routes(model(*slow, timeouts=timeouts)))
    got = chat(router)
    assert code_of(got) == (504, "upstream_timeout")
    assert words in got.json()["error"]["message"]
    assert over.wait(20)
    assert sum(len(upstream.seen) for upstream in slow) == 1


def test_silence_in_mid_answer_breaks_it_off(start: Start, serve: Serve, routes: Routes) -> None:
    """Nothing for `idle_s`: the stream ends visibly broken, and the server is left."""
    left = threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b"data: 1\n\n")
        if reply.wait_hung_up():
            left.set()

    upstream = serve(answer)
    router = start(ROUTES_FILE=routes(model(upstream, timeouts={"idle_s": 0.2})))
    with pytest.raises(requests.RequestException):
        requests.post(router.url + CHAT, json={"model": "m"}, timeout=20).json()
    assert left.wait(20)
    count = f'router_endpoint_requests_total{{code="upstream_timeout",endpoint="{upstream.url}"}}'
    until(lambda: router.metrics().get(count) == 1, "it is counted")


@pytest.mark.parametrize(
    "bytes_sent", [b"", b"HTTP/1.1 200 OK\r\n", b"SSH-2.0-x\r\n\r\n"], ids=["none", "half", "other"]
)
def test_broken_answer_is_not_tried_again(start: Start, serve: Serve, routes: Routes, bytes_sent: bytes) -> None:
    """On a fresh connection the server has seen the request and may have acted on it."""
    broken = [serve(lambda seen, reply: reply.raw(bytes_sent)) for _ in range(2)]
    router = start(ROUTES_FILE=routes(model(*broken)))
    assert code_of(chat(router)) == (502, "upstream_broken")
    assert sum(len(upstream.seen) for upstream in broken) == 1


@pytest.mark.parametrize("status", [429, 502, 503])
def test_refusal_is_tried_elsewhere_within_the_budget(start: Start, serve: Serve, routes: Routes, status: int) -> None:
    """Retries stay at a fifth of all requests, and the reserve of ten, over all workers; the rest get the refusal.

    After a 429 or 503 there are fewer: nobody retries at an endpoint that backs off.
    """
    refusing = [serve(lambda seen, reply: reply.send(status, b"no")) for _ in range(2)]
    router = start(ROUTES_FILE=routes(model(*refusing)), WEB_CONCURRENCY=3)
    assert [chat(router).status_code for _ in range(200)] == [status] * 200
    retries = router.metrics()[f'router_retries_total{{reason="status_{status}"}}']
    assert sum(len(upstream.seen) for upstream in refusing) == 200 + retries
    assert (40 if status == 502 else 1) <= retries <= 50
    gauges = [router.metrics()[f'router_endpoint_inflight{{endpoint="{upstream.url}"}}'] for upstream in refusing]
    assert gauges == [0, 0]


@pytest.mark.parametrize("status", [400, 404, 408, 500, 501, 504])
def test_other_answers_are_passed_on(pair: Pair, status: int) -> None:
    """They may have done something already, or would be the same elsewhere."""
    pair.answer(lambda seen, reply: reply.send(status, b"theirs"))
    got = chat(pair.router)
    assert (got.status_code, got.content) == (status, b"theirs")
    assert pair.seen() == 1


@pytest.mark.parametrize("status", [429, 503])
def test_endpoint_backs_off_as_it_asks(start: Start, serve: Serve, routes: Routes, status: int) -> None:
    """Retry-After: it is left alone; where no other is left it is not, and the client hears what it says."""
    busy = serve(lambda seen, reply: reply.send(status, b"busy", Retry_After="30"))
    good = serve()
    router = start(ROUTES_FILE=routes(model(busy, good)), WEB_CONCURRENCY=2)
    assert {chat(router).status_code for _ in range(20)} == {200}
    assert len(busy.seen) == 1
    router = start(ROUTES_FILE=routes(model(busy)))
    for got in (chat(router), chat(router)):
        assert (got.status_code, got.content, got.headers["Retry-After"]) == (status, b"busy", "30")
    assert len(busy.seen) == 3


def test_rate_limit_of_a_clients_own_credentials_is_the_clients(start: Start, serve: Serve, routes: Routes) -> None:
    """A 429 for one client's key says nothing to the others."""
    picky = serve(
        lambda seen, reply: reply.send(429 if "one" in seen.headers["authorization"] else 200, Retry_After="30")
    )
    router = start(ROUTES_FILE=routes(model(picky, forward_credentials=True)))
    assert chat(router, headers={"Authorization": "one"}).status_code == 429
    assert chat(router, headers={"Authorization": "two"}).status_code == 200


@pytest.mark.parametrize("balancing", ["least_inflight", "round_robin"])
def test_retries_take_no_turns(start: Start, serve: Serve, routes: Routes, balancing: str) -> None:
    """Of two, one refuses everything: it gets every other request, not every one."""
    bad, good = serve(lambda seen, reply: reply.send(502)), serve()
    router = start(ROUTES_FILE=routes(model(bad, good, balancing=balancing)))
    statuses = Counter(chat(router).status_code for _ in range(100))
    assert len(bad.seen) == 50
    assert statuses[200] >= 70  # the other half, and what the budget could save of this one


def test_share_counts_those_that_are_unhealthy(start: Start, serve: Serve, routes: Routes) -> None:
    """One of two is out by its checks: failures don't take the other one out as well."""
    unhealthy, bad = serve(), serve(lambda seen, reply: reply.send(500))
    unhealthy.well = False
    check = {"interval_s": 1, "timeout_s": 20, "unhealthy_after": 1}
    router = start(ROUTES_FILE=routes(model(unhealthy, bad, health_check=check, ejection={"consecutive_failures": 2})))
    until(lambda: not is_up(router, unhealthy), "it is out")
    assert {chat(router).status_code for _ in range(10)} == {500}
    assert is_up(router, bad)


def test_checks_that_are_switched_off_keep_nobody_out(start: Start, serve: Serve, routes: Routes) -> None:
    """Nobody would ever find it well again."""
    upstream = serve()
    check = {"interval_s": 1, "unhealthy_after": 1}
    router = start(ROUTES_FILE=routes(model(upstream, health_check=check)))
    upstream.well = False
    until(lambda: not is_up(router, upstream), "it is out")
    routes(model(upstream))
    until(lambda: is_up(router, upstream), "it is in")


def test_endpoint_is_back_after_so_many_good_checks(start: Start, serve: Serve, routes: Routes) -> None:
    """Not after the first if two are asked for."""
    upstream = serve()
    check = {"interval_s": 1, "unhealthy_after": 1, "healthy_after": 3}
    router = start(ROUTES_FILE=routes(model(upstream, health_check=check)), WEB_CONCURRENCY=1)
    upstream.well = False
    until(lambda: not is_up(router, upstream), "it is out")
    before = upstream.checks
    upstream.well = True
    until(lambda: is_up(router, upstream), "it is back")
    assert upstream.checks - before >= 3


def test_version_without_an_endpoint_is_replaced_by_another(start: Start, serve: Serve, routes: Routes) -> None:
    """Unless it is pinned."""
    good = serve()
    versions = [
        {"name": "canary", "weight": 99, "endpoints": [nobody()]},
        {"name": "stable", "weight": 1, "endpoints": [good.url]},
    ]
    router = start(ROUTES_FILE=routes({"name": "m", "versions": versions, "health_check": NO_CHECKS}))
    assert {chat(router).status_code for _ in range(10)} == {200}
    assert chat(router, headers={"X-Model-Version": "canary"}).status_code == 502


def test_endpoint_that_fails_is_out_for_all_workers_and_back_by_one_probe(
    start: Start, serve: Serve, routes: Routes
) -> None:
    """Five failures in a row eject it everywhere; when its time is over one request tries it, and it is in again."""
    fails = threading.Event()
    fails.set()
    probe = threading.Semaphore(0)

    def answer(seen: Seen, reply: Reply) -> None:
        if not fails.is_set():
            probe.acquire(timeout=30)
        reply.send(500 if fails.is_set() else 200)

    bad, good = serve(answer), serve()
    ejection = {"consecutive_failures": 5, "base_s": 4, "max_s": 4}
    router = start(ROUTES_FILE=routes(model(bad, good, ejection=ejection)), WEB_CONCURRENCY=3, MAX_CONCURRENCY=1000)
    until(lambda: chat(router) and not is_up(router, bad), "it is ejected")
    count = len(bad.seen)
    assert count >= 5
    assert {chat(router).status_code for _ in range(10)} == {200}
    assert len(bad.seen) == count
    until(lambda: "endpoint ejected" in router.log(), "it is logged")
    fails.clear()
    crowd = Crowd(lambda _: chat(router).status_code)
    until(lambda: len(crowd.send(1).answers) > 0 and len(bad.seen) > count, "it is tried")
    crowd.send(10)
    until(lambda: len(good.seen) > 10 and len(crowd.answers) > 10, "the others are answered by the other")
    assert len(bad.seen) == count + 1
    for _ in range(100):
        probe.release()
    until(lambda: is_up(router, bad), "it is in again")
    assert set(crowd.join().counts()) == {200}
    until(lambda: chat(router) and len(bad.seen) > count + 1, "it gets requests again")


def test_last_endpoints_are_not_ejected(start: Start, serve: Serve, routes: Routes) -> None:
    """At most the share: of two one, of one none."""
    bad = [serve(lambda seen, reply: reply.send(500)) for _ in range(2)]
    router = start(ROUTES_FILE=routes(model(*bad, ejection={"consecutive_failures": 1})))
    for _ in range(20):
        chat(router)
    assert sorted(is_up(router, upstream) for upstream in bad) == [False, True]


def test_unhealthy_endpoint_is_left_out_until_it_is_healthy(start: Start, serve: Serve, routes: Routes) -> None:
    """Asked by one prober for all workers; readiness follows, liveness doesn't."""
    upstream = serve()
    check = {"interval_s": 1, "unhealthy_after": 2, "panic_threshold": 0}
    router = start(ROUTES_FILE=routes(model(upstream, health_check=check)), WEB_CONCURRENCY=3)
    until(lambda: upstream.checks >= 2, "it is asked")
    began, before = time.monotonic(), upstream.checks
    upstream.well = False
    until(lambda: not is_up(router, upstream), "it is out")
    assert code_of(chat(router)) == (503, "no_endpoint")
    for path, status in (("/readyz", 503), ("/v2/health/ready", 503), ("/healthz", 200), ("/v2/health/live", 200)):
        assert requests.get(router.url + path, timeout=5).status_code == status
    upstream.well = True
    until(lambda: is_up(router, upstream), "it is back")
    assert chat(router).status_code == 200
    assert requests.get(f"{router.url}/readyz", timeout=5).status_code == 200
    # Once a second, whatever the number of workers. (An answer may be late, so one more.)
    assert upstream.checks - before <= time.monotonic() - began + 2


def test_another_worker_takes_the_checks_over(start: Start, serve: Serve, routes: Routes) -> None:
    """Whoever asked is killed, whichever it is: somebody else asks."""
    upstream = serve()
    router = start(ROUTES_FILE=routes(model(upstream, health_check={"interval_s": 1})), WEB_CONCURRENCY=2)
    until(lambda: upstream.checks >= 1, "it is asked")
    for _ in range(2):
        for worker in router.workers():
            router.signal(signal.SIGKILL, worker)
        before = upstream.checks
        until(lambda: upstream.checks > before, "it is asked again")
    upstream.well = False
    until(lambda: router.ready() is False, "and what is found out holds")


def test_endpoint_that_is_killed_and_comes_back_under_load(start: Start, serve: Serve, routes: Routes) -> None:
    """Only what was in flight on it may fail; the rest goes elsewhere, and traffic returns by itself."""
    settings = {"MODEL_REF": "m", "SIMULATED_LATENCY_MS": 30, "WEB_CONCURRENCY": 1, "MAX_CONCURRENCY": 100}
    port = free_port()
    victim, other = start(port=port, **settings), start(**settings)
    victim_url = f"http://127.0.0.1:{port}"
    check = {"interval_s": 0.5, "unhealthy_after": 2}
    ejection = {"base_s": 1, "max_s": 1}
    router = start(
        ROUTES_FILE=routes(model(victim_url, other.url, health_check=check, ejection=ejection)), MAX_CONCURRENCY=100
    )
    stopped = threading.Event()
    outcomes: Counter[object] = Counter()

    def load(_: int) -> None:
        session = requests.Session()
        while not stopped.is_set():
            got = session.post(f"{router.url}{CHAT}", json=BODY, timeout=30)
            outcomes[got.status_code] += 1

    crowd = Crowd(load).send(20)
    gauge = f'router_endpoint_inflight{{endpoint="{victim_url}"}}'
    until(lambda: outcomes[200] > 200, "it runs")
    for pid in (victim.pid, *victim.workers()):
        victim.signal(signal.SIGKILL, pid)
    done = outcomes[200]
    until(lambda: outcomes[200] > done + 300, "it goes on")
    failed = sum(count for status, count in outcomes.items() if status != 200)
    assert failed <= 20
    again = start(port=port, **settings)
    served = f'router_endpoint_requests_total{{code="200",endpoint="{victim_url}"}}'
    before = router.metrics()[served]
    until(lambda: router.metrics()[served] > before + 50, "traffic returns")
    stopped.set()
    crowd.join()
    assert sum(count for status, count in outcomes.items() if status != 200) == failed
    assert router.metrics()[gauge] == 0
    assert again.ready()
    assert not crowd.errors


def test_reused_connection_that_was_closed_is_replaced(start: Start, serve: Serve, routes: Routes) -> None:
    """A server that closes connections after a response without a word costs no client anything, nor a second POST."""
    upstream = serve(lambda seen, reply: reply.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"))  # kept, it says
    router = start(ROUTES_FILE=routes(model(upstream)), WEB_CONCURRENCY=1)
    assert [chat(router).status_code for _ in range(100)] == [200] * 100
    assert len(upstream.seen) == 100


def test_repeats_on_closed_connections_are_counted(start: Start, serve: Serve, routes: Routes) -> None:
    """A safe request is repeated whatever its server had read, each at the cost of the retry budget."""
    count = 0

    def answer(seen: Seen, reply: Reply) -> None:
        nonlocal count
        count += 1
        if count % 2:
            reply.send(200)  # kept, as it says
        else:
            reply.raw(b"")  # closed when the next request is there

    upstream = serve(answer)
    router = start(ROUTES_FILE=routes(model(upstream, protocol="v2", retry_budget=0.01)), WEB_CONCURRENCY=1)
    statuses = [requests.get(f"{router.url}/v2/models/m", timeout=20).status_code for _ in range(30)]
    retries = router.metrics()['router_retries_total{reason="stale_connection"}']
    assert retries == 10  # the reserve
    assert statuses.count(502) >= 5
    assert statuses.count(200) + statuses.count(502) == 30
    assert len(upstream.seen) == 30 + retries
