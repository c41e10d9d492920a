"""How the router connects to model servers, and what it makes of their connections: names, addresses, first bytes."""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.test_upstream_failures import NO_CHECKS, STEADY, code_of
from tests.support.clients import CHAT, Crowd, chat
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.scripted_server import Peer, ScriptedServer
from tests.support.swallow import swallowing
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]

EAGER = {"consecutive_failures": 2, "max_share": 1}
"""Ejects an endpoint soon."""


class Names:
    """What the router finds when it looks a name up."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "names.json"
        self._names: dict[str, list[str] | str] = {}

    def set(self, **names: list[str] | str) -> None:
        """From now on these names have these addresses, or their lookup `fails` or `hangs`."""
        self._names.update({f"{name}.test": found for name, found in names.items()})
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps(self._names))
        written.rename(self.path)


@pytest.fixture
def names(tmp_path: Path) -> Names:
    """No names yet."""
    return Names(tmp_path)


@pytest.fixture
def start_named(start: Start, names: Names) -> Start:
    """Starts a router of one worker that looks names up here."""
    return lambda **settings: start(
        options=("-c", "python:tests.support.names_conf"),
        TEST_NAMES=names.path,
        WEB_CONCURRENCY=1,
        MAX_CONCURRENCY=100,
        **settings,
    )


def named(model: str, name: str, port: int, **members: Any) -> dict[str, Any]:
    """A model of a routes file whose endpoint is `name.test`."""
    return {"name": model, "endpoints": [f"http://{name}.test:{port}"], "health_check": NO_CHECKS, **members}


def up(router: Router) -> dict[str, float]:
    """Whether each endpoint is up, by its URL."""
    begin = 'router_endpoint_up{endpoint="'
    return {
        name.removeprefix(begin).removesuffix('"}'): value
        for name, value in router.metrics().items()
        if name.startswith(begin)
    }


def test_names_that_hang_take_no_other_name_down(
    start_named: Start, serve: Serve, routes: Routes, names: Names
) -> None:
    """Of 13 names 12 hang: the other one is served as ever, and none is ejected for the router's own trouble."""
    upstream = serve()
    bad = {f"bad{number}": "hangs" for number in range(12)}
    names.set(good=["127.0.0.1"], **bad)
    quick = {"timeouts": {"connect_s": 0.5}, "ejection": EAGER}
    router = start_named(
        ROUTES_FILE=routes(
            named("good", "good", upstream.port, ejection=EAGER),
            *(named(one, one, upstream.port, **quick) for one in bad),
        )
    )
    crowd = Crowd(lambda number: code_of(chat(router, model=f"bad{number % 12}")))
    crowd.send(36)
    for _ in range(20):
        assert chat(router, model="good").status_code == 200
    assert set(crowd.join().counts()) == {(502, "upstream_unreachable")}
    assert set(up(router).values()) == {1}
    names.set(**{one: ["127.0.0.1"] for one in bad})
    until(lambda: chat(router, model="bad0").status_code == 200, "a name that is found again is served")


def test_last_address_serves_while_the_name_is_not_found(start_named: Start, routes: Routes, names: Names) -> None:
    """Requests and health checks go on with the address that the name had, on new connections too."""
    with Upstream(lambda seen, reply: reply.send(Connection="close")) as upstream:
        names.set(good=["127.0.0.1"])
        check = {"interval_s": 1, "timeout_s": 5, "unhealthy_after": 1}
        router = start_named(ROUTES_FILE=routes(named("m", "good", upstream.port, health_check=check, ejection=EAGER)))
        assert chat(router).status_code == 200
        names.set(good="hangs")
        checks = upstream.checks
        until(lambda: chat(router).status_code == 200 and upstream.checks >= checks + 2, "it is checked and served")
        assert set(up(router).values()) == {1}


def test_endpoint_is_not_judged_by_a_lookup_that_fails(
    start_named: Start, serve: Serve, routes: Routes, names: Names
) -> None:
    """An endpoint whose name was never found is neither ejected nor unhealthy, and served once it is found."""
    upstream = serve()
    names.set(late="fails")
    check = {"interval_s": 1, "unhealthy_after": 1}
    path = routes(named("m", "late", upstream.port, health_check=check, ejection=EAGER))
    router = start_named(ROUTES_FILE=path, INITIAL_HEALTH="healthy")
    for _ in range(10):
        assert code_of(chat(router)) == (502, "upstream_unreachable")
    until(lambda: "endpoint can't be checked" in router.log(), "the log says so")
    assert set(up(router).values()) == {1}
    names.set(late=["127.0.0.1"])
    until(lambda: chat(router).status_code == 200, "it is served")


def test_endpoint_is_not_judged_by_clients_that_leave_during_a_lookup(
    start_named: Start, serve: Serve, routes: Routes, names: Names
) -> None:
    """The lookup hangs for longer than clients wait: the endpoint was not contacted, so it is not to blame."""
    upstream = serve()
    names.set(hanging="hangs")
    router = start_named(ROUTES_FILE=routes(named("m", "hanging", upstream.port, ejection=EAGER)))

    def leave(_: int) -> None:
        with pytest.raises(requests.Timeout):
            requests.post(router.url + CHAT, json={"model": "m"}, timeout=0.7)

    assert not Crowd(leave).send(12).join().errors
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "the router has noticed")
    assert "ejected" not in router.log()
    names.set(hanging=["127.0.0.1"])
    until(lambda: chat(router).status_code == 200, "it is served once it is found")


def test_name_that_moves_takes_its_kept_connections_along(start_named: Start, routes: Routes, names: Names) -> None:
    """After a name has moved, requests go to the new address soon, under load and without an error."""
    port = free_port()
    with Upstream(port=port) as before, Upstream(port=port, host="127.0.0.2") as after:
        names.set(name=["127.0.0.1"])
        router = start_named(ROUTES_FILE=routes(named("m", "name", port)))
        assert {chat(router).status_code for _ in range(10)} == {200}
        assert len(before.seen) == 10
        names.set(name=["127.0.0.2"])
        until(lambda: chat(router).status_code == 200 and after.seen, "the new address is used")
        count = len(before.seen)
        assert {chat(router).status_code for _ in range(20)} == {200}
        assert len(before.seen) == count


def test_connecting_to_many_addresses_takes_no_longer_than_to_one(
    start_named: Start, routes: Routes, names: Names
) -> None:
    """A name with four addresses that swallow connections: `connect_s` bounds them all together."""
    hosts = [f"127.0.0.{number}" for number in range(2, 6)]
    names.set(gone=hosts)
    with socket.create_server(("127.0.0.1", 0)) as holder, swallowing(port := holder.getsockname()[1], *hosts):
        timeouts = {"connect_s": 1, "total_s": 2}
        router = start_named(ROUTES_FILE=routes(named("m", "gone", port, timeouts=timeouts, ejection=STEADY)))
        began = time.monotonic()
        got = chat(router)
        assert code_of(got) == (502, "upstream_unreachable")
        assert "not connected within 1 s" in got.json()["error"]["message"]
        assert time.monotonic() - began < 3.5  # well below four times as long


def test_stream_may_pause_before_its_first_byte(start: Start, serve: Serve, routes: Routes) -> None:
    """The head of a stream says nothing of the model: `first_byte_s` lasts to the first byte of the body."""

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin()
        assert not threading.Event().wait(1.0)  # the prefill, longer than `idle_s`
        reply.raw(b"9\r\ndata: 1\n\n\r\n" * 3 + b"0\r\n\r\n")  # at once: no pause in it is longer than `idle_s`

    upstream = serve(answer)
    timeouts = {"first_byte_s": 20, "idle_s": 0.3}
    router = start(
        ROUTES_FILE=routes({"name": "m", "endpoints": [upstream.url], "timeouts": timeouts, "health_check": NO_CHECKS})
    )
    with requests.post(router.url + CHAT, json={"model": "m", "stream": True}, stream=True, timeout=20) as got:
        assert got.content == b"data: 1\n\n" * 3
    metrics = router.metrics()
    assert metrics['router_time_to_first_byte_seconds_count{model="m"}'] == 1
    assert metrics['router_time_to_first_byte_seconds_sum{model="m"}'] >= 1.0


def test_stream_without_a_first_byte_is_cut_in_time(start: Start, serve: Serve, routes: Routes) -> None:
    """A stream whose head came and nothing else is cut after `first_byte_s`, and counts as a failure."""
    left = threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin()
        if reply.wait_hung_up():
            left.set()

    upstream = serve(answer)
    model = {"name": "m", "endpoints": [upstream.url], "timeouts": {"first_byte_s": 3}, "health_check": NO_CHECKS}
    router = start(ROUTES_FILE=routes(model))
    with pytest.raises(requests.RequestException):
        requests.post(router.url + CHAT, json={"model": "m", "stream": True}, timeout=20).json()
    assert left.wait(20)
    count = f'router_endpoint_requests_total{{code="upstream_timeout",endpoint="{upstream.url}"}}'
    until(lambda: router.metrics().get(count) == 1, "it is counted")
    until(lambda: "no first byte of the response's body within 3 s" in router.log(), "it is logged")


def test_request_that_crashes_its_server_is_sent_once(start: Start, serve: Serve, routes: Routes) -> None:
    """A POST that a server has read is not repeated when its kept connection ends, soon or after some work."""

    def answer(seen: Seen, reply: Reply) -> None:
        if b"poison" not in seen.body:
            reply.send()
            return
        assert not threading.Event().wait(0.5 if b"slow" in seen.body else 0)
        reply.raw(b"")

    upstream = serve(answer)
    model = {"name": "m", "endpoints": [upstream.url], "health_check": NO_CHECKS, "ejection": STEADY}
    router = start(ROUTES_FILE=routes(model), WEB_CONCURRENCY=1)
    for prompt in ("poison", "slow poison") * 3:
        assert chat(router).status_code == 200
        assert code_of(chat(router, messages=[{"role": "user", "content": prompt}])) == (502, "upstream_broken")
    assert len(upstream.seen) == 12
    assert router.metrics()['router_retries_total{reason="stale_connection"}'] == 0


def test_early_response_reaches_the_client_while_the_server_reads_nothing(start: Start, routes: Routes) -> None:
    """A 413 that a server sends at the head of a long body, with the connection left open, is the client's response."""
    over = threading.Event()

    def refuse(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 413 Too Long\r\ncontent-length: 4\r\n\r\nlong")
        assert over.wait(20)

    with ScriptedServer(refuse) as server:
        model = {"name": "m", "endpoints": [f"http://127.0.0.1:{server.port}"], "health_check": NO_CHECKS}
        router = start(ROUTES_FILE=routes(model), MAX_BODY_BYTES=1 << 25)
        got = chat(router, messages=[{"role": "user", "content": "x" * (24 << 20)}])
        assert (got.status_code, got.content) == (413, b"long")
        over.set()
