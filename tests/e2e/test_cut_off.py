"""Requests that the router itself ends early: each is recorded and logged as what it was, and blames nobody."""

import json
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from app.shared_memory.slots import is_alive
from tests.support.clients import CHAT, read_to_end, unread_bytes
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
EVENT = b"data: {}\n\n"
VERSIONS = ("1.1", "1.0")
"""Of HTTP. Requests of the older one take the way of gunicorn's parser and response."""
BODY = b'{"model":"m","messages":[]}'
FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\n'
HALVES = {
    "a body": (CHAT, f"Content-Length: {len(BODY)}", BODY[:10]),
    "chunks": (CHAT, "Transfer-Encoding: chunked", b"1b\r\n" + BODY[:10]),
    "between chunks": (CHAT, "Transfer-Encoding: chunked", b"2\r\n{ \r\n"),
    "a form": (
        "/v1/audio/transcriptions",
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 99999",
        FORM,
    ),
}


def record_of(admin_port: int, request_id: str) -> dict[str, Any]:
    """The record of a request that has ended, or will have in a moment."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        answer = requests.get(f"http://127.0.0.1:{admin_port}/admin/requests/{request_id}", timeout=20)
        found[:] = [answer.json()] if answer.status_code == 200 else []
        return bool(found)

    until(is_there, "the record is written")
    return found[0]


@contextmanager
def asking(router: Router, version: str = "1.1", receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection on which a completion was asked for, with the request id `id`."""
    body = json.dumps({"model": "m", "messages": []}).encode()
    head = f"POST {CHAT} HTTP/{version}\r\nHost: x\r\nX-Request-Id: id\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as sock:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", router.port))
        sock.sendall(head.encode() + body)
        yield sock


class Endless:
    """A model server whose responses do not end: it sends as many events, and then waits until it is hung up on."""

    def __init__(self, events: int) -> None:
        self._events = events
        self.hung_up = threading.Event()

    def __call__(self, seen: Seen, reply: Reply) -> None:
        if self._events:
            reply.begin()
        for _ in range(self._events):
            reply.chunk(EVENT)
        assert reply.wait_hung_up()
        self.hung_up.set()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("events", [0, 1])
def test_request_that_a_reload_no_longer_waits_for_is_cut_off(
    events: int, version: str, start: Start, serve: Serve
) -> None:
    """The worker goes after GRACEFUL_TIMEOUT_S. A client that has nothing yet is told so, and a stream ends. In record,
    metrics and log it is `cut_off`, and neither a failure of the endpoint nor a client that left."""
    endless = Endless(events)
    upstream = serve(endless)
    admin_port = free_port()
    router = start(
        BACKENDS=upstream.url,
        MODEL_REF="m",
        GRACEFUL_TIMEOUT_S=1,
        WEB_CONCURRENCY=1,
        ADMIN_BIND=f"127.0.0.1:{admin_port}",
    )
    with asking(router, version) as client:
        upstream.wait_seen(1)
        begun = b""
        while events and EVENT not in begun:
            received = client.recv(65536)
            assert received, "the response ended before its first event"
            begun += received
        router.signal(signal.SIGHUP)
        answer = begun + read_to_end(client)
    assert endless.hung_up.wait(20)
    if events:
        assert b" 200 OK\r\n" in answer
        assert not answer.endswith(b"0\r\n\r\n"), "it does not look complete"
    else:
        assert b" 503 Service Unavailable\r\n" in answer
        assert b"connection: close\r\n" in answer.lower()
        assert b'"code":"cut_off"' in answer.replace(b" ", b"")
    record = record_of(admin_port, "id")
    assert (record["status"], record["error"], record["outcome"]) == (503, "cut_off", "failed")
    assert [each["outcome"] for each in record["attempts"]] == ["cut_off"]
    assert "the router stopped before the response was complete" in record["explanation"]
    counted = router.metrics()
    assert counted[f'router_requests_total{{code="503",model="m",route="{CHAT}"}}'] == 1
    assert counted[f'router_endpoint_requests_total{{code="cut_off",endpoint="{upstream.url}"}}'] == 1
    (endpoint,) = requests.get(f"http://127.0.0.1:{admin_port}/admin/endpoints", timeout=20).json()["endpoints"]
    assert endpoint["last_error"] is None
    line = router.logged("id")
    assert (line["status"], line["error"]) == (503, "cut_off")


def test_request_that_a_drain_no_longer_waits_for_is_cut_off(start: Start, serve: Serve) -> None:
    """The same as a shutdown sees it: the client gets the 503, and the log has the last word."""
    endless = Endless(0)
    upstream = serve(endless)
    router = start(BACKENDS=upstream.url, MODEL_REF="m", GRACEFUL_TIMEOUT_S=1)
    with asking(router) as client:
        upstream.wait_seen(1)
        router.signal(signal.SIGTERM)
        assert read_to_end(client).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert router.wait_exit() == 0
    (line,) = [each for each in router.events() if each.get("request_id") == "id"]
    assert (line["status"], line["error"], line["endpoint"]) == (503, "cut_off", upstream.url)


@pytest.mark.parametrize("signal_sent", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("version", VERSIONS)
def test_request_that_stops_arriving_in_a_drain_is_cut_off(
    version: str, signal_sent: signal.Signals, start: Start, serve: Serve
) -> None:
    """It holds up no drain. But it did not leave: its client is told, and the log says who ended it."""
    router = start(BACKENDS=serve().url, MODEL_REF="m", WEB_CONCURRENCY=1, GRACEFUL_TIMEOUT_S=60)
    (former,) = router.workers()
    clients = {}
    for name, (path, fields, half) in HALVES.items():
        if not (version == "1.0" and "chunked" in fields):
            sock = socket.create_connection(("127.0.0.1", router.port), timeout=20)
            request_id = name.replace(" ", "-")
            clients[request_id] = sock
            head = f"POST {path} HTTP/{version}\r\nHost: x\r\nX-Request-Id: {request_id}\r\n{fields}\r\n\r\n"
            sock.sendall(head.encode() + half)
            until(lambda sock=sock: not unread_bytes(sock), "the router has read it")  # type: ignore[misc]
    router.signal(signal_sent)
    for name, sock in clients.items():
        with sock:
            answer = read_to_end(sock)
        assert answer.startswith(f"HTTP/{version} 503 Service Unavailable\r\n".encode()), name
        assert b'"code":"cut_off"' in answer.replace(b" ", b""), name
    until(lambda: not is_alive(former), "the worker has not waited for them")
    lines = [each for each in router.events() if each.get("request_id") in clients]
    assert sorted(each["request_id"] for each in lines) == sorted(clients)
    assert {(each["status"], each["error"]) for each in lines} == {(503, "cut_off")}


@pytest.mark.parametrize("version", VERSIONS)
def test_client_that_stalls_in_its_response_is_named(version: str, start: Start, serve: Serve) -> None:
    """A client that reads nothing any more is hung up on after STALL_TIMEOUT_S. That it did not leave by itself is in
    record, explanation and log; the status stays that of clients who leave."""
    upstream = serve(lambda _, reply: reply.send(body=b"x" * 20_000_000))
    admin_port = free_port()
    router = start(
        BACKENDS=upstream.url,
        MODEL_REF="m",
        STALL_TIMEOUT_S=1,
        ADMIN_BIND=f"127.0.0.1:{admin_port}",
    )
    with asking(router, version, receive_buffer=4096):
        record = record_of(admin_port, "id")
    assert (record["status"], record["error"], record["outcome"]) == (499, "response_stalled", "client_left")
    assert "it took no more of its response for STALL_TIMEOUT_S" in record["explanation"]
    line = router.logged("id")
    assert (line["status"], line["error"]) == (499, "response_stalled")


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_client_that_leaves_in_its_upload_has_left(how: str, start: Start, serve: Serve) -> None:
    """Half a body and then the end of the connection: no bad request, but a client that left. No model server has it,
    and it held nothing."""
    upstream = serve()
    admin_port = free_port()
    router = start(BACKENDS=upstream.url, MODEL_REF="m", WEB_CONCURRENCY=1, ADMIN_BIND=f"127.0.0.1:{admin_port}")
    for version in VERSIONS:
        for number, (path, fields, half) in enumerate(HALVES.values()):
            if version == "1.0" and "chunked" in fields:
                continue  # there are none in HTTP/1.0
            request_id = f"{version}-{number}"
            head = f"POST {path} HTTP/{version}\r\nHost: x\r\nX-Request-Id: {request_id}\r\n{fields}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", router.port)) as sock:
                if how == "resets":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.sendall(head.encode() + half)
                until(lambda: not unread_bytes(sock), "the router has read it")
            record = record_of(admin_port, request_id)
            assert (record["status"], record["outcome"], record["error"]) == (499, "client_left", None), request_id
            assert record["explanation"].endswith("before its request had come")
    assert upstream.seen == []
    assert not any(name.startswith("router_requests_total") and '"400"' in name for name in router.metrics())
