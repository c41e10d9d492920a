"""Balancing by weights, by what model servers report, and by the history of prompts, over real workers."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clients import Crowd, chat
from tests.support.router import Router, until
from tests.support.upstream import Hold, Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]


def posts(upstream: Upstream) -> list[Seen]:
    """The requests of clients that a server has got."""
    return [seen for seen in upstream.seen if seen.method == "POST"]


def reporting(page: Callable[[], str], **headers: str) -> Callable[[Seen, Reply], None]:
    """A server that has this page of metrics, and these headers in every response."""

    def serve(seen: Seen, reply: Reply) -> None:
        if seen.path == "/metrics":
            reply.send(200, page().encode())
        else:
            reply.send(200, b"{}", **headers)

    return serve


def stale(router: Router, upstream: Upstream) -> float:
    """What the metric says of a server's report."""
    return router.metrics()[f'router_endpoint_load_stale{{endpoint="{upstream.url}"}}']


def test_requests_are_spread_by_weight(start: Start, serve: Serve, routes: Routes) -> None:
    """40 requests over three workers and endpoints of weights 3 and 1: 30 and 10 at once."""
    hold = Hold()
    upstreams = [serve(hold), serve(hold)]
    endpoints = [{"url": one.url, "weight": weight} for one, weight in zip(upstreams, (3, 1), strict=True)]
    router = start(ROUTES_FILE=routes({"name": "m", "endpoints": endpoints}), MAX_CONCURRENCY=50, WEB_CONCURRENCY=3)
    crowd = Crowd(lambda _: chat(router).status_code).send(40)
    until(lambda: sum(upstream.inside for upstream in upstreams) == 40, "all are there")
    assert [upstream.inside for upstream in upstreams] == [30, 10]
    hold.release()
    assert crowd.join().counts() == {200: 40}


def test_endpoint_that_appears_starts_slowly(start: Start, serve: Serve, routes: Routes) -> None:
    """All workers give an endpoint that the routes did not have a tenth of its share, long before `slow_start_s`."""
    hold = Hold()
    upstreams = [serve(hold), serve(hold)]
    model = {"name": "m", "slow_start_s": 3600}
    path = routes({**model, "endpoints": [upstreams[0].url]})
    router = start(ROUTES_FILE=path, MAX_CONCURRENCY=50, WEB_CONCURRENCY=3)
    Path(path).write_text(json.dumps({"models": [{**model, "endpoints": [one.url for one in upstreams]}]}))
    until(lambda: f'router_endpoint_up{{endpoint="{upstreams[1].url}"}}' in router.metrics(), "the routes are new")
    crowd = Crowd(lambda _: chat(router).status_code).send(33)
    until(lambda: sum(upstream.inside for upstream in upstreams) == 33, "all are there")
    assert [upstream.inside for upstream in upstreams] == [30, 3]
    hold.release()
    assert crowd.join().counts() == {200: 33}


@pytest.mark.parametrize("source", ["metrics", "header"])
def test_server_that_others_load_gets_fewer_requests(start: Start, serve: Serve, routes: Routes, source: str) -> None:
    """Reported by its page or by its responses, in whichever worker: requests go to the other one until it is as full.

    The router asks for the header, and a page that is gone makes the report stale, which the metric says.
    """
    pages = ["vllm:num_requests_running 90\n", "vllm:num_requests_running 0\n"]
    loads = [f"TEXT named_metrics.num_requests_running={number}" for number in (90, 1)]
    upstreams = [
        serve(reporting(lambda n=n: pages[n], **({"Endpoint_Load_Metrics": loads[n]} if source == "header" else {})))  # type: ignore[misc]
        for n in range(2)
    ]
    endpoints = [upstream.url for upstream in upstreams]
    report = {"source": source, "interval_s": 2 if source == "metrics" else 600}  # stale after three
    path = routes({"name": "m", "balancing": "least_load", "endpoints": endpoints, "load_report": report})
    router = start(ROUTES_FILE=path, WEB_CONCURRENCY=3)
    if source == "header":
        assert [stale(router, one) for one in upstreams] == [1, 1]
        for _ in range(4):  # in turn, while nothing is known
            assert chat(router).status_code == 200
    until(lambda: [stale(router, one) for one in upstreams] == [0, 0], "both have reported")
    before = [len(posts(upstream)) for upstream in upstreams]
    for _ in range(20):
        assert chat(router).status_code == 200
    assert [len(posts(one)) - was for one, was in zip(upstreams, before, strict=True)] == [0, 20]
    assert posts(upstreams[1])[0].headers["endpoint-load-metrics-format"] == "TEXT"
    if source == "metrics":
        pages[:] = ["", ""]
        until(lambda: [stale(router, one) for one in upstreams] == [1, 1], "the reports are stale")
        for _ in range(20):
            assert chat(router).status_code == 200
        assert len(posts(upstreams[0])) == before[0] + 10


def test_header_of_a_load_is_not_asked_for_otherwise(start: Start, serve: Serve) -> None:
    """Other policies send what they sent before, scrape nothing, and have no metric of it."""
    upstream = serve()
    router = start(BACKENDS=upstream.url, MODEL_REF="m")
    assert chat(router).status_code == 200
    assert "endpoint-load-metrics-format" not in posts(upstream)[0].headers
    assert not any(name.startswith("router_endpoint_load_stale") for name in router.metrics())
    assert [seen.path for seen in upstream.seen if seen.method == "GET"] == []


def test_conversations_stay_where_their_beginning_is(start: Start, serve: Serve, routes: Routes) -> None:
    """Whichever worker takes a turn, it goes where the turn before went, and conversations are spread evenly.

    Their common system prompt does not draw them together: all endpoints have it after a while.
    """

    def name(seen: Seen, reply: Reply) -> None:
        reply.send(200, b"{}", X_Port=seen.headers["host"])

    upstreams = [serve(name) for _ in range(3)]
    path = routes({"name": "m", "balancing": "prefix", "endpoints": [one.url for one in upstreams], "load_floor": 0})
    router = start(ROUTES_FILE=path, WEB_CONCURRENCY=3)
    went: dict[int, list[str]] = {}
    histories = {number: [{"role": "user", "content": f"{number} " * 600}] for number in range(12)}
    for turn in range(5):
        for number, messages in histories.items():
            messages.append({"role": "user", "content": f"{number} and {turn} " * 80})
            went.setdefault(number, []).append(chat(router, messages=messages).headers["X-Port"])
    assert all(len(set(ports)) == 1 for ports in went.values())
    assert sorted(Counter(ports[0] for ports in went.values()).values()) == [4, 4, 4]


def test_conversation_moves_when_its_endpoint_is_full(start: Start, serve: Serve, routes: Routes) -> None:
    """The bound holds for one prompt too: 12 requests at once are 4 on each of three endpoints, with a bound of 1."""
    hold = Hold()
    upstreams = [serve(hold) for _ in range(3)]
    endpoints = [one.url for one in upstreams]
    path = routes({"name": "m", "balancing": "prefix", "endpoints": endpoints, "load_floor": 0, "load_bound": 1})
    router = start(ROUTES_FILE=path, WEB_CONCURRENCY=3, MAX_CONCURRENCY=50)
    crowd = Crowd(lambda _: chat(router, messages=[{"role": "user", "content": "x" * 4000}]).status_code).send(12)
    until(lambda: sum(upstream.inside for upstream in upstreams) == 12, "all are there")
    assert [upstream.inside for upstream in upstreams] == [4, 4, 4]
    hold.release()
    assert crowd.join().counts() == {200: 12}
