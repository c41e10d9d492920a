"""Streams come through as they come, stop when the client leaves, and break visibly when the model server does."""

import http.client
import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable

import pytest
import requests

from tests.support.clients import CHAT, read_all
from tests.support.router import Router, until
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
ShareRouted = Callable[..., tuple[Router, Upstream]]

EVENTS = [b"data: {}\n\n", b": comment\n\n", b"data: \xc3", b"\xbc\n\n", b"data: [DONE]\n\n"]


class Paced:
    """A stream whose next event is sent when the test says."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.hung_up = threading.Event()

    def __call__(self, seen: Seen, reply: Reply) -> None:
        reply.begin()
        for event in EVENTS:
            self.go.acquire(timeout=60)
            reply.chunk(event)
        reply.chunk()


def ask(router: Router, version: str = "1.1") -> socket.socket:
    """A connection on which a stream was asked for."""
    body = json.dumps({"model": "m", "stream": True, "messages": []}).encode()
    sock = socket.create_connection(("127.0.0.1", router.port), timeout=20)
    head = f"POST {CHAT} HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


def test_each_event_comes_when_it_is_sent(share_routed: ShareRouted) -> None:
    """The next event is not even sent before the client has the one before; not a byte differs."""
    paced = Paced()
    router, _ = share_routed(paced)
    client = http.client.HTTPConnection("127.0.0.1", router.port, timeout=20)
    client.request("POST", CHAT, json.dumps({"model": "m", "stream": True}))
    got = client.getresponse()  # the head comes before any event
    assert got.getheader("Content-Type") == "text/event-stream"
    for event in EVENTS:
        paced.go.release()
        assert got.read1(1000) == event
    assert got.read() == b""
    client.close()


def test_stream_to_an_old_client_ends_with_the_connection(share_routed: ShareRouted) -> None:
    """HTTP/1.0 has no chunks."""
    paced = Paced()
    router, _ = share_routed(paced)
    sock = ask(router, "1.0")
    for _ in EVENTS:
        paced.go.release()
    got = read_all(sock)
    assert got.partition(b"\r\n\r\n")[2] == b"".join(EVENTS)
    sock.close()


@pytest.mark.parametrize("when", ["before the first byte", "between two events"])
def test_client_that_leaves_stops_the_model(share_routed: ShareRouted, when: str) -> None:
    """The upstream request is cancelled at once, and everything it held comes back."""
    hung_up = threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        if when == "between two events":
            reply.begin()
            reply.chunk(EVENTS[0])
        if reply.wait_hung_up():
            hung_up.set()

    router, upstream = share_routed(answer, MAX_CONCURRENCY=1)
    before = Counter(router.metrics())
    sock = ask(router)
    upstream.wait_seen(1)
    if when == "between two events":
        while EVENTS[0] not in sock.recv(65536):
            pass
    sock.close()
    assert hung_up.wait(20)
    total = f'router_requests_total{{code="499",model="m",route="{CHAT}"}}'
    until(lambda: router.metrics().get(total, 0) - before[total] == 1, "it is counted, which comes last")
    counted = router.metrics()
    assert counted["router_inflight_requests"] == 0
    assert counted[f'router_endpoint_inflight{{endpoint="{upstream.url}"}}'] == 0
    attempts = f'router_endpoint_requests_total{{code="499",endpoint="{upstream.url}"}}'
    assert counted[attempts] - before[attempts] == 1


@pytest.mark.parametrize("way", ["killed", "hangs up", "bad chunk"])
def test_stream_that_breaks_looks_broken(start: Start, serve: Serve, way: str) -> None:
    """No end of the chunks, no [DONE]: the client can't take the piece for the whole."""

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(EVENTS[0])
        reply.raw(b"zz\r\n" if way == "bad chunk" else b"")

    if way == "killed":
        upstream = start(SIMULATED_LATENCY_MS=0, SIMULATED_TOKEN_MS=50, MODEL_REF="m", WEB_CONCURRENCY=1)
        url = upstream.url
    else:
        url = serve(answer).url
    router = start(BACKENDS=url, MODEL_REF="m")
    body = {"model": "m", "stream": True, "max_tokens": 1000, "messages": [{"role": "user", "content": "a " * 1000}]}
    client = http.client.HTTPConnection("127.0.0.1", router.port, timeout=20)
    client.request("POST", CHAT, json.dumps(body))
    got = client.getresponse()
    read = b""
    if way == "killed":
        read = got.read1(1000)
        for pid in (upstream.pid, *upstream.workers()):
            upstream.signal(signal.SIGKILL, pid)
    with pytest.raises(http.client.IncompleteRead) as broken:
        got.read()
    read += broken.value.partial
    client.close()
    assert b"[DONE]" not in read
    total = f'router_requests_total{{code="502",model="m",route="{CHAT}"}}'
    until(lambda: router.metrics().get(total) == 1, "it is counted")
    counted = router.metrics()
    assert counted[f'router_endpoint_requests_total{{code="upstream_broken",endpoint="{url}"}}'] == 1
    assert counted["router_inflight_requests"] == 0
    assert "Traceback" not in router.log()


def test_break_looks_broken_to_an_old_client_too(share_routed: ShareRouted) -> None:
    """HTTP/1.0 ends a body with the connection; so a broken one ends with a reset."""

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(EVENTS[0])
        reply.raw(b"")

    router, _ = share_routed(answer)
    sock = ask(router, "1.0")
    with pytest.raises(ConnectionResetError):
        read_all(sock)
    sock.close()


def test_answer_that_breaks_before_anything_was_sent_is_an_error(share_routed: ShareRouted) -> None:
    """A short answer is whole before it is passed on: one that breaks off is a clean 502."""
    router, _ = share_routed(lambda seen, reply: reply.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"))
    got = requests.post(router.url + CHAT, json={"model": "m"}, timeout=20)
    assert (got.status_code, got.json()["error"]["code"]) == (502, "upstream_broken")


def test_long_answer_passes_in_pieces(start: Start, serve: Serve) -> None:
    """50 MB come through whole, with their length, without being held in memory."""
    body = bytes(range(256)) * 200_000
    upstream = serve(lambda seen, reply: reply.send(200, body))
    router = start(BACKENDS=upstream.url, MODEL_REF="m", WEB_CONCURRENCY=1)
    (worker,) = router.workers()

    def peak_kib() -> int:
        with open(f"/proc/{worker}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    before = peak_kib()
    got = requests.post(router.url + CHAT, json={"model": "m"}, timeout=60)
    assert got.headers["Content-Length"] == str(len(body))
    assert got.content == body
    assert peak_kib() - before < 20_000


def test_drain_waits_for_streams(start: Start, serve: Serve) -> None:
    """TERM in mid-stream: the stream is finished first."""
    paced = Paced()
    upstream = serve(paced)
    router = start(BACKENDS=upstream.url, MODEL_REF="m")
    sock = ask(router)
    upstream.wait_seen(1)
    router.signal(signal.SIGTERM)
    until(lambda: "Handling signal: term" in router.log(), "the arbiter heard it")
    for _ in EVENTS:
        paced.go.release()
    got = read_all(sock)
    assert got.endswith(b"0\r\n\r\n")
    assert router.wait_exit() == 0
    sock.close()
