"""Endpoints that refuse, hang, are slow to be checked, or were never reached: which ones get requests, and who says so.

Each test has the servers say or do what was seen of real ones, under requests of real clients.
"""

import gzip
import json
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from structlog.testing import capture_logs

from app.config.routes_file import parse_routes
from app.errors import RoutesError
from tests.support.clients import CHAT, Crowd, chat
from tests.support.local_router import LocalRouter
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]

NO_CHECKS = {"interval_s": 0}
MODEL_READY = "/v2/models/m/ready"
PATIENCE_S = 2.5
"""So long a client waits before it leaves. A machine that is busy for a moment does not make it leave."""
STEADY = {"consecutive_failures": 1000, "failure_rate": 1, "min_requests": 1_000_000}
"""Ejects nobody."""
TOO_LONG = (
    b'{"error":{"message":"This model\'s maximum context length is 4096 tokens. However, you requested 5003 tokens.'
    b'","type":"InternalServerError","code":500}}'
)


def model(*upstreams: Upstream | str, **members: Any) -> dict[str, Any]:
    """A model of a routes file, without health checks and ejection unless they are given."""
    urls = [upstream if isinstance(upstream, str) else upstream.url for upstream in upstreams]
    return {"name": "m", "endpoints": urls, "health_check": NO_CHECKS, "ejection": STEADY, **members}


def is_up(router: Router, upstream: Upstream | str) -> bool:
    """What the metrics say of an endpoint."""
    url = upstream if isinstance(upstream, str) else upstream.url
    return router.metrics()[f'router_endpoint_up{{endpoint="{url}"}}'] == 1


def readiness(router: Router, *paths: str) -> list[int]:
    """What the paths say that tell whether requests can be served."""
    paths = ("/readyz", "/v2/health/ready", *paths)
    return [requests.get(router.url + path, timeout=20).status_code for path in paths]


def leave_after(router: Router, seconds: float, **members: Any) -> int | None:
    """A chat whose client leaves if no body comes for so long. Returns the status of a response that came."""
    try:
        body = {"model": "m", "messages": [], **members}
        return requests.post(router.url + CHAT, json=body, timeout=(20, seconds)).status_code
    except (requests.Timeout, requests.ConnectionError):
        return None


def listens(router: Router) -> bool:
    """Whether the router accepts connections."""
    try:
        requests.get(f"{router.url}/healthz", timeout=20)
    except requests.ConnectionError:
        return False
    return True


def test_rate_limit_of_one_model_is_not_the_others(start: Start, serve: Serve, routes: Routes) -> None:
    """Both endpoints ask for a pause for two models: each gets its refusal as before, and the third one is spread."""
    refused = {"a": 429, "b": 503}

    def name_in(seen: Seen) -> str:
        return str(json.loads(seen.body)["model"])

    def answer(seen: Seen, reply: Reply) -> None:
        reply.send(refused.get(name_in(seen), 200), b"limited", Retry_After="30")

    one, other = serve(answer), serve(answer)
    models = [model(one, other, name=name, balancing="round_robin", retry_budget=0) for name in "abc"]
    router = start(ROUTES_FILE=routes(*models))
    for name, status in refused.items():
        for _ in range(4):
            got = chat(router, name)
            assert (got.status_code, got.content, got.headers["Retry-After"]) == (status, b"limited", "30")
    assert {chat(router, "c").status_code for _ in range(10)} == {200}
    assert [sum(name_in(seen) == "c" for seen in upstream.seen) for upstream in (one, other)] == [5, 5]


def test_quick_failures_attract_no_requests_where_no_more_may_be_ejected(
    start: Start, serve: Serve, routes: Routes
) -> None:
    """Two of three fail at once, and one may be ejected: the third one, which takes its time, serves nearly all."""

    def work(seen: Seen, reply: Reply) -> None:
        time.sleep(0.05)
        reply.send()

    bad = [serve(lambda seen, reply: reply.send(500)) for _ in range(2)]
    ejection = {"consecutive_failures": 3, "base_s": 60}
    router = start(ROUTES_FILE=routes(model(*bad, serve(work), ejection=ejection)), MAX_CONCURRENCY=50)
    crowd = Crowd(lambda _: [chat(router).status_code for _ in range(15)]).send(8).join()
    counts = Counter(got for answer in crowd.answers.values() for got in answer)
    assert counts[200] + counts[500] == 120
    assert counts[500] <= 30, "least_inflight alone would send them four of five"
    assert sum(is_up(router, upstream) for upstream in bad) == 1


def test_quick_refusals_attract_no_requests(start: Start, serve: Serve, routes: Routes) -> None:
    """One of two refuses at once and the other one takes its time: nearly all requests are served."""

    def work(seen: Seen, reply: Reply) -> None:
        time.sleep(0.05)
        reply.send()

    refusing, good = serve(lambda seen, reply: reply.send(int(seen.path.split("/")[1]))), serve(work)
    statuses = (401, 429, 503)
    models = [model(f"{refusing.url}/{s}", f"{good.url}/{s}", name=str(s), retry_budget=0) for s in statuses]
    router = start(ROUTES_FILE=routes(*models), MAX_CONCURRENCY=50)
    for status in statuses:
        crowd = Crowd(lambda _: [chat(router, str(status)).status_code for _ in range(15)]).send(8).join()
        counts = Counter(got for answer in crowd.answers.values() for got in answer)
        assert counts[200] + counts[status] == 120
        assert counts[status] <= 30, "least_inflight alone would send it four of five"


@pytest.mark.parametrize("streams", [False, True], ids=["silence", "head of a stream"])
def test_endpoint_that_hangs_is_ejected_although_its_clients_leave(
    start: Start, serve: Serve, routes: Routes, streams: bool
) -> None:
    """Its health checks are fine, but clients leave before any timeout. A trial that leads nowhere is a failure."""

    def hang(seen: Seen, reply: Reply) -> None:
        if streams:
            reply.begin()  # as Starlette does, before anything is generated
        reply.wait_hung_up()

    hanging, good = serve(hang), serve()
    ejection = {"consecutive_failures": 4, "base_s": 0.2}
    check = {"interval_s": 1}
    routed = model(hanging, good, ejection=ejection, health_check=check, balancing="round_robin")
    router = start(ROUTES_FILE=routes(routed), MAX_CONCURRENCY=50)

    def crowd() -> Counter[Any]:
        """Some clients at once, each of which leaves after a while."""
        return Crowd(lambda _: leave_after(router, PATIENCE_S)).send(12).join().counts()

    def reasons() -> list[str]:
        """Why the endpoint was ejected, each time."""
        return [line["reason"] for line in router.events() if line["event"] == "endpoint ejected"]

    assert crowd() == {None: 6, 200: 6}
    until(lambda: reasons() == ["clients leave before the first byte"], "it is ejected")
    until(lambda: is_up(router, hanging), "its ejection is over")
    assert crowd() == {None: 1, 200: 11}, "a trial costs one client"
    until(lambda: reasons() == ["clients leave before the first byte"] * 2, "the trial has failed")


def test_endpoint_that_has_begun_its_response_does_not_hang(start: Start, serve: Serve, routes: Routes) -> None:
    """Clients leave in the middle of short responses: the first byte was there, so they say nothing of the endpoint."""

    def begin(seen: Seen, reply: Reply) -> None:
        reply.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        reply.wait_hung_up()

    upstream = serve(begin)
    router = start(ROUTES_FILE=routes(model(upstream, ejection={"consecutive_failures": 2, "max_share": 1})))
    Crowd(lambda _: leave_after(router, PATIENCE_S)).send(8).join()
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "the router has noticed")
    assert len(upstream.seen) == 8
    assert "ejected" not in router.log()


def test_busy_endpoint_is_not_ejected_by_impatient_clients(start: Start, serve: Serve, routes: Routes) -> None:
    """Long prompts lose their clients one after another, while short ones are served by the same endpoint."""
    hold = threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        if b"long" in seen.body:
            reply.wait_hung_up()
        reply.send()

    upstreams = [serve(answer) for _ in range(2)]
    # By turns: chosen by load, all short ones might go to one endpoint, and the other would really serve nobody.
    routed = model(*upstreams, ejection={"consecutive_failures": 2}, balancing="round_robin")
    router = start(ROUTES_FILE=routes(routed), MAX_CONCURRENCY=50)

    def short(_: int) -> set[int]:
        seen = set()
        while not hold.is_set():
            seen.add(chat(router).status_code)
        return seen

    crowd = Crowd(short).send(4)
    leavers = Crowd(lambda _: leave_after(router, PATIENCE_S, prompt="long")).send(8).join()
    hold.set()
    assert leavers.counts() == {None: 8}
    assert set().union(*crowd.join().answers.values()) == {200}
    assert all(is_up(router, upstream) for upstream in upstreams)
    assert "ejected" not in router.log()


def test_slow_health_checks_are_ignored_while_inference_works(start: Start, serve: Serve, routes: Routes) -> None:
    """Both servers are busy and their checks time out: requests are served, and so the endpoints stay up."""
    upstreams = [serve() for _ in range(2)]
    # A slow check is ignored where a request was served within the interval, which a busy machine may stand still for.
    check = {"interval_s": 3, "timeout_s": 0.05, "unhealthy_after": 1}
    router = start(ROUTES_FILE=routes(model(*upstreams, health_check=check)))
    until(lambda: chat(router) and all(is_up(router, upstream) for upstream in upstreams), "both are up, and serve")
    for upstream in upstreams:
        upstream.check_delay_s = 0.5
    before = [upstream.checks for upstream in upstreams]
    statuses = set()

    def checked_while_serving() -> bool:
        statuses.add(chat(router).status_code)
        return all(upstream.checks > count + 1 for upstream, count in zip(upstreams, before, strict=True))

    until(checked_while_serving, "they are checked")
    assert statuses == {200}
    assert all(is_up(router, upstream) for upstream in upstreams)
    until(lambda: not any(is_up(router, upstream) for upstream in upstreams), "without requests, checks count again")
    assert {chat(router).status_code for _ in range(10)} == {200}
    assert readiness(router) == [200, 200], "a router that serves stays in service"
    until(lambda: chat(router) and all(is_up(router, upstream) for upstream in upstreams), "requests make them healthy")


def test_below_the_panic_threshold_all_are_tried(start: Start, serve: Serve, routes: Routes) -> None:
    """Two of three are unhealthy by their own word: all three are used. One of three: only the others are."""
    upstreams = [serve() for _ in range(3)]
    check = {"interval_s": 1, "unhealthy_after": 1}
    router = start(ROUTES_FILE=routes(model(*upstreams, health_check=check, balancing="round_robin")))

    def spread_of(*unwell: int) -> list[int]:
        for number, upstream in enumerate(upstreams):
            upstream.well = number not in unwell
        until(lambda: [n for n in range(3) if not is_up(router, upstreams[n])] == list(unwell), "they are found")
        for upstream in upstreams:
            upstream.seen.clear()
        assert {chat(router).status_code for _ in range(12)} == {200}
        return [len(upstream.seen) for upstream in upstreams]

    assert spread_of(0) == [0, 6, 6]
    assert spread_of(0, 1) == [4, 4, 4]
    assert spread_of(0, 1, 2) == [4, 4, 4]
    assert readiness(router) == [200, 200], "a router that serves stays in service"


def test_version_that_backs_off_keeps_its_share(start: Start, serve: Serve, routes: Routes) -> None:
    """One 429 of the version that has nearly all requests does not send them all to a canary."""
    refusals = iter([429])
    stable = serve(lambda seen, reply: reply.send(next(refusals, 200), Retry_After="20"))
    canary = serve()
    versions = [
        {"name": "stable", "weight": 1_000_000, "endpoints": [stable.url]},
        {"name": "canary", "weight": 1, "endpoints": [canary.url]},
    ]
    router = start(ROUTES_FILE=routes({"name": "m", "versions": versions, "health_check": NO_CHECKS}))
    assert chat(router).status_code == 200, "a retry may go to any version"
    assert len(canary.seen) == 1
    assert {chat(router).status_code for _ in range(20)} == {200}
    assert (len(stable.seen), len(canary.seen)) == (21, 1)


def test_retry_does_not_go_to_an_endpoint_that_backs_off(start: Start, serve: Serve, routes: Routes) -> None:
    """A response is there already, and one from a server that has refused would be no better."""
    upstreams = [serve(lambda seen, reply: reply.send(429, Retry_After="20")) for _ in range(2)]
    router = start(ROUTES_FILE=routes(model(*upstreams)))
    assert chat(router).status_code == 429
    assert [len(upstream.seen) for upstream in upstreams] == [1, 1]
    assert chat(router).status_code == 429
    assert sum(len(upstream.seen) for upstream in upstreams) == 3


def test_version_in_panic_gives_way_to_a_healthy_one(start: Start, serve: Serve, routes: Routes) -> None:
    """Checks are ignored only where nothing healthy is left: neither in the version nor in another one."""
    canary, stable = serve(), serve()
    versions = [
        {"name": "canary", "weight": 99, "endpoints": [canary.url]},
        {"name": "stable", "weight": 1, "endpoints": [stable.url]},
    ]
    check = {"interval_s": 1, "unhealthy_after": 1}
    router = start(ROUTES_FILE=routes({"name": "m", "versions": versions, "health_check": check}))
    canary.well = False
    until(lambda: not is_up(router, canary), "it is unhealthy")
    assert {chat(router).status_code for _ in range(10)} == {200}
    assert (len(canary.seen), len(stable.seen)) == (0, 10)
    assert chat(router, headers={"X-Model-Version": "canary"}).status_code == 200
    assert len(canary.seen) == 1


def test_router_is_ready_once_an_endpoint_was_reached(routes: Routes, tmp_path: Any) -> None:
    """Nobody listens yet: not ready, and the gauge agrees; requests are tried all the same. Then a check succeeds."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    router = Router(tmp_path, ROUTES_FILE=routes(model(url, protocol="v2", health_check={"interval_s": 1})))
    try:
        router.launch()
        until(lambda: listens(router), "it lives")
        assert readiness(router, MODEL_READY) == [503, 503, 503]
        assert "none has been reached yet" in requests.get(f"{router.url}/readyz", timeout=20).text
        assert not is_up(router, url)
        assert requests.post(f"{router.url}/v2/models/m/infer", json={"inputs": []}, timeout=20).status_code == 502
        with Upstream(port=port):
            until(lambda: readiness(router) == [200, 200], "it is ready")
            assert is_up(router, url)
    finally:
        router.stop()


@pytest.mark.parametrize(
    ("check", "settings", "status"),
    [
        ({"interval_s": 60}, {}, 503),
        ({"interval_s": 60}, {"INITIAL_HEALTH": "healthy"}, 200),
        ({"interval_s": 0}, {}, 200),
    ],
)
def test_router_is_ready_at_once_where_nothing_is_checked_or_health_is_assumed(
    routes: Routes, tmp_path: Path, check: dict[str, Any], settings: dict[str, str], status: int
) -> None:
    """Before any endpoint was reached: without checks nothing could ever tell, and a setting says what to assume."""
    url = f"http://127.0.0.1:{free_port()}"
    file = routes(model(url, protocol="v2", health_check=check))
    with LocalRouter(tmp_path, ROUTES_FILE=file, **settings) as local:
        for path in ("/readyz", "/v2/health/ready", MODEL_READY):
            assert local.ask("GET", path).status == status
        up = f'router_endpoint_up{{endpoint="{url}"}} {float(status == 200)}'
        assert up in local.ask("GET", "/metrics").body


def test_router_is_ready_once_a_request_was_served(routes: Routes, serve: Serve, tmp_path: Any) -> None:
    """No check has ended yet: a request that is served is as good."""
    upstream = serve()
    upstream.check_delay_s = 60
    check = {"interval_s": 60, "timeout_s": 60}
    router = Router(tmp_path, ROUTES_FILE=routes(model(upstream, health_check=check, protocol="v2")))
    try:
        router.launch()
        until(lambda: listens(router) and upstream.checks, "it is checked at the start")
        assert readiness(router, MODEL_READY) == [503, 503, 503]
        assert requests.post(f"{router.url}/v2/models/m/infer", json={"inputs": []}, timeout=20).status_code == 200
        assert readiness(router, MODEL_READY) == [200, 200, 200]
        assert is_up(router, upstream)
    finally:
        router.stop()


class Error(NamedTuple):
    """An error of a model server, what the route ignores, and whether it ejects the endpoint all the same."""

    status: int
    body: bytes
    ignored: dict[str, list[Any]]
    ejected: bool


ERRORS = [
    Error(500, b"no", {}, True),
    Error(500, TOO_LONG, {}, False),
    Error(500, TOO_LONG, {"ignored_texts": []}, True),
    Error(500, b"no", {"ignored_statuses": [500]}, False),
    Error(503, b"no", {"ignored_statuses": [500]}, True),
    Error(503, b'{"detail": "Prompt REFUSED by policy"}', {"ignored_texts": ["refused by policy"]}, False),
    Error(400, b"no", {}, False),
    Error(408, b"no", {}, False),
    Error(429, b"no", {}, False),
]


def test_errors_that_are_the_clients_eject_nobody(start: Start, serve: Serve, routes: Routes) -> None:
    """A listed status or text is no failure, nor is a 4xx, however it is sent; the response passes unchanged."""

    def answer(seen: Seen, reply: Reply) -> None:
        _, number, form, *_ = seen.path.split("/")
        error = ERRORS[int(number)]
        if form == "chunks":
            reply.begin(error.status)
            for piece in filter(None, (error.body[:9], error.body[9:])):
                reply.chunk(piece)
            reply.chunk()
        else:
            reply.send(error.status, error.body)

    upstream = serve(answer)
    cases = {f"/{number}/{form}": error for number, error in enumerate(ERRORS) for form in ("length", "chunks")}
    eager = {"consecutive_failures": 1, "max_share": 1}
    router = start(
        ROUTES_FILE=routes(
            *(model(upstream.url + path, name=path, ejection=eager | error.ignored) for path, error in cases.items())
        )
    )
    for path, error in cases.items():
        got = chat(router, path)
        assert (got.status_code, got.content) == (error.status, error.body)
    assert {path: not is_up(router, upstream.url + path) for path in cases} == {
        path: error.ejected for path, error in cases.items()
    }


CODINGS: dict[str, Callable[[bytes], bytes]] = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}


def test_request_at_fault_is_neither_retried_nor_held_against_the_endpoint(
    start: Start, serve: Serve, routes: Routes
) -> None:
    """What would be retried, and let an endpoint back off or be ejected, does neither if the text blames the request.

    One of two endpoints says so: it gets every other request as before, its clients get the response, and it stays up.
    The text comes with a length or in chunks, short or with much behind it, compressed or not.
    """
    noise = random.Random(1).randbytes(1 << 17)

    def answer(seen: Seen, reply: Reply) -> None:
        _, status, form, coding, *_ = seen.path.split("/")
        body = CODINGS[coding](TOO_LONG + (noise if form == "long" else b""))
        framing = f"Content-Length: {len(body)}"
        if form == "chunks":
            framing = "Transfer-Encoding: chunked"
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:9], body[9:], b""))
        head = f"HTTP/1.1 {status} No\r\nRetry-After: 30\r\nContent-Encoding: {coding}\r\n{framing}\r\n\r\n"
        reply.socket.sendall(head.encode() + body)  # all at once: the text is waited for a moment only

    upstream, good = serve(answer), serve()
    names = ["/".join(each) for each in product(("401", "429", "502", "503"), ("length", "chunks", "long"), CODINGS)]
    members = {"balancing": "round_robin", "retry_budget": 1, "ejection": {"consecutive_failures": 1, "max_share": 1}}
    models = [model(f"{upstream.url}/{name}", f"{good.url}/{name}", name=name, **members) for name in names]
    router = start(ROUTES_FILE=routes(*models))
    for name in names:
        refused = [got for got in (chat(router, name) for _ in range(4)) if got.status_code != 200]
        assert [(f"{got.status_code}", got.headers["Retry-After"]) for got in refused] == [(name[:3], "30")] * 2
        assert all(got.content.startswith(TOO_LONG) for got in refused)
    assert (len(upstream.seen), len(good.seen)) == (2 * len(names), 2 * len(names))
    metrics = router.metrics()
    assert {metrics[f'router_endpoint_up{{endpoint="{upstream.url}/{name}"}}'] for name in names} == {1}


@pytest.mark.parametrize(
    ("text", "end"), [(b"", "silence"), (TOO_LONG[:40], "silence"), (b"no", "break")], ids=["no text", "half", "broken"]
)
def test_refusal_whose_text_does_not_come_is_retried(
    start: Start, serve: Serve, routes: Routes, text: bytes, end: str
) -> None:
    """The text is waited for a moment only, and an error that breaks off is retried as one that is whole."""

    def refuse(seen: Seen, reply: Reply) -> None:
        reply.begin(503)
        if text:
            reply.chunk(text)
        if end == "break":
            reply.raw(b"not a chunk")
        else:
            reply.wait_hung_up()

    refusing, good = serve(refuse), serve()
    router = start(ROUTES_FILE=routes(model(refusing, good, balancing="round_robin", timeouts={"idle_s": 60})))
    assert {chat(router).status_code for _ in range(2)} == {200}
    assert (len(refusing.seen), len(good.seen)) == (1, 2)


def test_client_that_leaves_in_the_middle_of_an_error_changes_no_verdict(
    start: Start, serve: Serve, routes: Routes
) -> None:
    """What has come of the text by then counts."""

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin(500)
        reply.chunk(b"no" if seen.path.startswith("/broken") else TOO_LONG)
        reply.wait_hung_up()

    upstream = serve(answer)
    eager = {"consecutive_failures": 1, "max_share": 1}
    names = ("broken", "long")
    router = start(ROUTES_FILE=routes(*(model(f"{upstream.url}/{n}", name=n, ejection=eager) for n in names)))
    for name in names:
        body = {"model": name, "messages": []}
        with requests.post(router.url + CHAT, json=body, timeout=20, stream=True) as got:
            assert next(got.iter_content(2))
    counted = 'router_endpoint_requests_total{code="500",endpoint="%s/%s"}'
    until(lambda: all(router.metrics().get(counted % (upstream.url, name)) == 1 for name in names), "both have ended")
    assert [is_up(router, f"{upstream.url}/{name}") for name in names] == [False, True]


def test_refusal_that_is_retried_elsewhere_counts_as_a_failure(start: Start, serve: Serve, routes: Routes) -> None:
    """Also if its body comes in chunks, which nobody reads then: the endpoint is ejected, and the code is counted."""

    def refuse(seen: Seen, reply: Reply) -> None:
        reply.begin(502)
        reply.chunk(b"no")
        reply.chunk()

    refusing, good = serve(refuse), serve()
    router = start(ROUTES_FILE=routes(model(refusing, good, ejection={"consecutive_failures": 3})))
    assert {chat(router).status_code for _ in range(10)} == {200}
    assert not is_up(router, refusing)
    assert router.metrics()[f'router_endpoint_requests_total{{code="502",endpoint="{refusing.url}"}}'] == 3


@pytest.mark.parametrize(
    ("protocol", "path", "prefix"),
    [
        ("openai", "/v1", ""),
        ("openai", "/v1/", ""),
        ("openai", "/serving/v1", "/serving"),
        ("openai", "/v1/chat/completions", ""),
        ("openai", "/v1/x", "/v1/x"),
        ("openai", "/v2", "/v2"),
        ("v2", "/v2/", ""),
        ("v2", "/serving/v2", "/serving"),
    ],
)
def test_root_of_the_protocol_is_not_there_twice(
    serve: Serve, tmp_path: Path, protocol: str, path: str, prefix: str
) -> None:
    """A base URL as other programs take it: requests reach the right path, and one line of the log says why."""
    upstream = serve()
    call = {"openai": CHAT, "v2": "/v2/models/m/infer"}[protocol]
    with (
        capture_logs() as log,
        LocalRouter(tmp_path, BACKENDS=upstream.url + path, BACKEND_PROTOCOL=protocol, MODEL_REF="m") as local,
    ):
        assert local.ask("POST", call, '{"model":"m","messages":[],"inputs":[]}').status == 200
        assert [seen.path for seen in upstream.seen] == [prefix + call]
        assert [state.url for state in local.router.models.registry.endpoint_states()] == [upstream.url + prefix]
    warned = [line["given"] for line in log if line["log_level"] == "warning"]
    assert warned == ([upstream.url + path.rstrip("/")] if prefix != path else [])


def test_root_of_the_protocol_is_left_out_of_a_routes_file(tmp_path: Path) -> None:
    """As with BACKENDS; two URLs that differ only by it are one endpoint, which may be there once."""
    text = '{"models":[{"name":"m","protocol":"%s","endpoints":["http://a/v1",{"url":"http://b/s/v2"},"http://a%s"]}]}'
    one = parse_routes(text % ("openai", "/x"), "r.json").models[0].versions[0]
    assert [endpoint.url for endpoint in one.endpoints] == ["http://a", "http://b/s/v2", "http://a/x"]
    other = parse_routes(text % ("v2", "/x"), "r.json").models[0].versions[0]
    assert [endpoint.url for endpoint in other.endpoints] == ["http://a/v1", "http://b/s", "http://a/x"]
    with pytest.raises(RoutesError, match="is the same as"):
        parse_routes(text % ("openai", ""), "r.json")


def test_url_with_a_password_is_not_logged() -> None:
    """Such a URL is refused, with or without the protocol's root."""
    with capture_logs() as log, pytest.raises(RoutesError, match="credentials") as refused:
        parse_routes('{"models":[{"name":"m","endpoints":["http://u:SECRET@a/v1"]}]}', "r.json")
    assert "SECRET" not in f"{log}{refused.value}"
