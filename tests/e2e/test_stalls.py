"""Clients that stop in the middle: each is cut off in time and holds no permit beyond it."""

import json
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import requests

from tests.support.clients import read_to_end, readable
from tests.support.gate import Gate
from tests.support.router import Router, until

pytestmark = pytest.mark.slow

Start = Callable[..., Router]

BEGUN = {
    "half a head": b"GET /heal",
    "half a body": b'POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"prompt":',
    "half a chunk": b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{",
    "a stray empty line": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n\r\n",
}

TRICKLING = {
    "a head": b"GET /heal",
    "a body": b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n{",
    "a chunk": b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n{",
}


def connect(router: Router, sent: bytes = b"", receive_buffer: int | None = None) -> socket.socket:
    """A client that has sent this much and stops."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", router.port))
    sock.sendall(sent)
    return sock


def large_request(length: int) -> bytes:
    """A request whose answer, the prompt echoed, is larger than what the kernel would take in."""
    body = json.dumps({"prompt": "x" * length}).encode()
    return b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_client_that_does_not_read_loses_its_permit(start: Start) -> None:
    """Answers that nobody takes hold their permits for STALL_TIMEOUT_S and no longer."""
    router = start(MAX_CONCURRENCY=2, SIMULATED_LATENCY_MS=1, STALL_TIMEOUT_S=3, MAX_BODY_BYTES=20_000_000)
    deaf = [connect(router, large_request(10_000_000), receive_buffer=4096) for _ in range(2)]
    cut_off = 'router_requests_total{code="499",model="simulated",route="/infer"}'
    until(lambda: router.metrics().get(cut_off) == 2, "both had a permit, and are cut off")
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "their permits are back")
    assert router.infer().status_code == 200
    for sock in deaf:
        sock.close()


@pytest.mark.alone
def test_client_that_reads_slowly_is_served_to_the_end(start: Start) -> None:
    """It is progress that counts, not the whole: an answer may take longer than STALL_TIMEOUT_S."""
    router = start(SIMULATED_LATENCY_MS=1, STALL_TIMEOUT_S=1, MAX_BODY_BYTES=20_000_000)
    length = 12_000_000
    with connect(router, large_request(length), receive_buffer=1 << 18) as sock:
        began, received = time.monotonic(), 0
        while time.monotonic() - began < 2.5:  # not to wait for something: to be slow is what is tested
            received += len(sock.recv(1 << 18))
            time.sleep(0.1)
        assert received < length, "the answer fitted into the kernel's buffers; this tested nothing"
        rest = 0
        while rest + received < length:
            chunk = sock.recv(1 << 20)
            assert chunk, "cut off in the middle"
            rest += len(chunk)


def test_requests_that_stop_arriving_are_given_up(share: Start) -> None:
    """Half a request: the connection ends after STALL_TIMEOUT_S; half a body is told why."""
    router = share(STALL_TIMEOUT_S=1, MAX_CONCURRENCY=1)
    with ExitStack() as stack:
        halves = {name: sent for name, sent in BEGUN.items() if name.startswith("half")}
        clients = {name: stack.enter_context(connect(router, sent)) for name, sent in halves.items()}
        answers = {name: read_to_end(sock) for name, sock in clients.items()}
    assert len(answers) == 3
    for name, answer in answers.items():
        assert (b" 408 " in answer) == (name != "half a head"), name
    assert router.infer().status_code == 200


@pytest.mark.parametrize(("stall_timeout_s", "names"), [(1, ["a head"]), (60, ["a body", "a chunk"])])
def test_requests_that_trickle_in_are_given_up(share: Start, stall_timeout_s: int, names: list[str]) -> None:
    """Steady progress doesn't make a request endless; it holds no permit meanwhile, and half a body is told why."""
    router = share(STALL_TIMEOUT_S=stall_timeout_s, UPLOAD_TIMEOUT_S=1, MAX_CONCURRENCY=1)
    with ExitStack() as stack:
        trickling = {name: stack.enter_context(connect(router, TRICKLING[name])) for name in names}
        answers = {}
        deadline = time.monotonic() + 30
        while trickling:
            for name, sock in list(trickling.items()):
                if readable(sock, 0.05 / len(trickling)):  # to be slow is what is tested
                    answers[name] = read_to_end(trickling.pop(name))
                else:
                    sock.sendall(b"x")
            assert time.monotonic() < deadline, "it goes on for ever"
            assert router.metrics()["router_inflight_requests"] == 0
    for name, answer in answers.items():
        assert (b" 408 " in answer) == (name != "a head"), name
    assert router.infer().status_code == 200


def test_silent_connection_ends_although_none_is_kept_alive(start: Start) -> None:
    """KEEPALIVE_S=0 says how long an idle connection is kept after an answer, not that a silent one stays for ever."""
    router = start(KEEPALIVE_S=0, STALL_TIMEOUT_S=1)
    with connect(router) as sock:
        assert sock.recv(1) == b""


def test_idle_connection_ends_after_keepalive(start: Start) -> None:
    """A connection nothing more is asked on is closed after KEEPALIVE_S."""
    router = start(KEEPALIVE_S=1)
    with connect(router, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
        assert read_to_end(sock).startswith(b"HTTP/1.1 200 OK")


def test_begun_requests_delay_no_drain(start: Start) -> None:
    """SIGTERM with requests that don't go on arriving: the server is gone in a moment, not after its timeout."""
    router = start(GRACEFUL_TIMEOUT_S=60, WEB_CONCURRENCY=1)
    with ExitStack() as stack:
        clients = {name: stack.enter_context(connect(router, sent)) for name, sent in BEGUN.items()}
        assert clients["a stray empty line"].recv(65536).startswith(b"HTTP/1.1 200 OK")
        router.ready()  # a round trip through the same worker: what was sent before has been read
        began = time.monotonic()
        router.signal(signal.SIGTERM)
        assert router.wait_exit(30) == 0
        assert time.monotonic() - began < 15, "it waited for what would never come"
    assert "cut off" not in router.log()


def test_client_that_left_after_an_early_byte_is_noticed(start: Start) -> None:
    """Bytes behind the request don't hide that the client is gone."""
    router = start(MAX_CONCURRENCY=1, SIMULATED_LATENCY_MS=60_000)
    sock = connect(router, b'POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"prompt":"x"}G')
    until(lambda: router.metrics()["router_inflight_requests"] == 1, "it is being served")
    sock.close()
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "its permit is back")


def test_pipelined_request_is_no_disconnect(start_gated: Start, gate: Gate) -> None:
    """A second request that arrives while the first is served is answered after it."""
    router = start_gated(MAX_CONCURRENCY=1, WEB_CONCURRENCY=1)
    first = b'POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"prompt":"x"}'
    with connect(router, first) as sock:
        gate.wait_inside(1)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert router.ready()  # a round trip through the same worker, which has noticed the second by then
        gate.open()
        assert read_to_end(sock).count(b"HTTP/1.1 200 OK") == 2


def test_more_connections_than_permits_are_held_and_probes_still_answered(start: Start) -> None:
    """1,500 connections that say nothing: more than gunicorn holds by default; everybody else is still served."""
    router = start(WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0)
    silent = [connect(router) for _ in range(1500)]
    assert requests.get(f"{router.url}/healthz", timeout=10).status_code == 200
    assert router.infer().status_code == 200
    for sock in silent:
        sock.close()
