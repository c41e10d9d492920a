"""Where our worker meets gunicorn: drain, PROXY protocol, TLS, hooks, worker_connections, frozen objects."""

import http.client
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import requests

from app.server.client_connection import IDLE_GRACE_S
from tests.support import frozen_wsgi
from tests.support.clients import CHAT, raw_request, read_to_end, readable
from tests.support.gate import Gate
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.tls_router import TlsRouter

pytestmark = pytest.mark.slow

Start = Callable[..., Router]

PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
DECLARED = b'POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"prompt":"x"}'
CHUNKED = b'POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{"prompt":"x"}\r\n0\r\n\r\n'
REQUESTS = {"ordinary": DECLARED, "chunked": CHUNKED}


def connect(port: int) -> socket.socket:
    """A client that has said nothing yet."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def ask(sock: socket.socket, request: bytes) -> int:
    """The status of the answer to one more request on this connection, read whole."""
    sock.sendall(request)
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    answer.read()
    return answer.status


def wait_idle() -> None:
    """Let the connections that there are be idle for longer than a drain gives them grace."""
    since = time.monotonic()
    until(lambda: time.monotonic() - since > IDLE_GRACE_S + 0.1, "they are idle")


def status_of_process(pid: int, name: str) -> str:
    """A line of /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(name + ":"))


def stop_with_sigterm_pending(router: Router, send: Callable[[], None]) -> None:
    """Have the only worker find, in one turn of its loop, both what `send` sends and the server's SIGTERM."""
    [worker] = router.workers()
    router.signal(signal.SIGSTOP, worker)
    until(lambda: status_of_process(worker, "State").startswith("T"), "the worker stands still")
    send()
    router.signal(signal.SIGTERM)
    bit = 1 << (signal.SIGTERM - 1)
    until(lambda: int(status_of_process(worker, "ShdPnd"), 16) & bit, "the arbiter has passed SIGTERM on")
    router.signal(signal.SIGCONT, worker)


@pytest.mark.parametrize("kind", REQUESTS)
def test_requests_that_wait_for_their_turn_are_answered_in_a_drain(start: Start, kind: str) -> None:
    """What was read on a connection that had long been idle is answered, though its turn comes after the SIGTERM."""
    router = start(WEB_CONCURRENCY=1, MAX_CONCURRENCY=1, SIMULATED_LATENCY_MS=1)
    clients = [connect(router.port) for _ in range(300)]
    assert router.ready()  # accepted after them: the worker has them all
    wait_idle()

    def send() -> None:
        for client in clients:
            client.sendall(REQUESTS[kind])

    stop_with_sigterm_pending(router, send)
    seen = Counter(read_to_end(client)[:12] for client in clients)
    for client in clients:
        client.close()
    assert seen.keys() <= {b"HTTP/1.1 200", b"HTTP/1.1 429", b"HTTP/1.1 503"}, seen
    assert router.wait_exit() == 0


def test_idle_connections_close_while_a_request_is_still_served(start_gated: Start, gate: Gate) -> None:
    """In a drain an idle connection ends at once, not with the last request; that one is answered whole."""
    router = start_gated(WEB_CONCURRENCY=1)
    held = raw_request(router.port)
    gate.wait_inside(1)
    idle = [connect(router.port) for _ in range(6)]
    assert [ask(sock, PROBE) for sock in idle[1:]] == [200] * 5, "one of the six never says anything"
    wait_idle()
    router.signal(signal.SIGTERM)
    for sock in idle:
        assert sock.recv(1) == b""
        sock.close()
    assert gate.inside == 1
    assert not readable(held, 0)
    gate.open()
    with held:
        head, _, body = read_to_end(held).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(body)["prompt"] == "hello"
    assert router.wait_exit() == 0


def proxy_line(address: str) -> bytes:
    """How a load balancer says for whom it connects."""
    return f"PROXY TCP4 {address} 192.0.2.1 5555 80\r\n".encode()


def logged(router: Router, path: str) -> list[str]:
    """The clients of the requests for this path, as the application saw them."""
    return [event["client"] for event in router.events() if event.get("path") == path]


@pytest.mark.parametrize("kind", REQUESTS)
def test_proxy_line_names_the_client_of_every_request_of_its_connection(share: Start, kind: str) -> None:
    """The line before the first request holds for the later ones, and for no other connection."""
    request = REQUESTS[kind]
    router = share(options=("--proxy-protocol", "v1"), ACCESS_LOG="all", WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0)
    before = len(logged(router, "/infer"))
    with connect(router.port) as one, connect(router.port) as other, connect(router.port) as direct:
        assert ask(one, proxy_line("203.0.113.7") + request) == 200
        assert ask(other, proxy_line("203.0.113.8") + request) == 200
        assert ask(direct, request) == 200
        for sock in (one, one, other, direct):
            assert ask(sock, request) == 200
    a, b, c = "203.0.113.7", "203.0.113.8", "127.0.0.1"
    until(lambda: len(logged(router, "/infer")) == before + 7, "all are logged")
    assert logged(router, "/infer")[before:] == [a, b, c, a, a, b, c]


@pytest.mark.parametrize("request_before", ["with a line", "without"])
def test_proxy_line_before_a_later_request_is_refused(share: Start, request_before: str) -> None:
    """Who may speak on a connection can't say in the middle of it that it is somebody else's."""
    router = share(options=("--proxy-protocol", "v1"), ACCESS_LOG="all", WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0)
    before = len(logged(router, "/infer"))
    with connect(router.port) as sock:
        line = proxy_line("203.0.113.7") if request_before == "with a line" else b""
        assert ask(sock, line + DECLARED) == 200
        assert ask(sock, proxy_line("203.0.113.8") + DECLARED) == 400
        assert read_to_end(sock) == b""
    until(lambda: len(logged(router, "/infer")) > before, "the first is logged")
    assert logged(router, "/infer")[before:] == ["203.0.113.7" if line else "127.0.0.1"]


def test_proxy_line_of_a_stranger_is_refused(start: Start) -> None:
    """--proxy-allow-from says whose word is taken."""
    router = start(options=("--proxy-protocol", "v1", "--proxy-allow-from", "192.0.2.1"), ACCESS_LOG="all")
    with connect(router.port) as sock:
        assert ask(sock, proxy_line("203.0.113.7") + DECLARED) == 403
        assert read_to_end(sock) == b""
    assert logged(router, "/infer") == []


@pytest.fixture(scope="module", params=["the router's", "gunicorn's"])
def tls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRouter]:
    """One for all tests of TLS, by the settings of either."""
    options = () if request.param == "gunicorn's" else None
    folder = tmp_path_factory.mktemp("tls")
    router = TlsRouter(folder, options=options, WEB_CONCURRENCY=1, STALL_TIMEOUT_S=3, SIMULATED_LATENCY_MS=1)
    with router:
        yield router


def test_tls_listener_serves_several_requests_on_one_connection(tls: TlsRouter) -> None:
    """Over TLS a connection is kept as it is without: ordinary and chunked bodies, one after the other."""
    context = tls.context()
    with connect(tls.port) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        assert [ask(sock, request) for request in (DECLARED, DECLARED, CHUNKED, PROBE)] == [200] * 4


def test_tls_listener_answers_a_body_that_comes_in_pieces(tls: TlsRouter) -> None:
    """A chunked body is put together over TLS too, piece by piece as the client sends it."""
    with tls.session() as session:
        pieces = iter([b'{"prom', b'pt":"', b"x" * 100_000, b'"}'])
        answer = session.post(f"{tls.url}/infer", data=pieces, timeout=10)
    assert (answer.status_code, answer.json()["prompt"]) == (200, "x" * 100_000)


def test_tls_client_that_sends_before_it_reads_gets_the_rejection(tls: TlsRouter) -> None:
    """A body that is too large is discarded over TLS too, so that the response arrives."""
    with tls.session() as session:
        assert session.post(f"{tls.url}/infer", data=b"x" * (24 << 20), timeout=20).status_code == 413


def test_tls_listener_streams(tls: TlsRouter) -> None:
    """A stream of events comes whole over TLS."""
    body = {"model": "simulated", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
    with tls.session() as session:
        answer = session.post(tls.url + CHAT, json=body, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert len(events) > 3
    assert events[-1] == "[DONE]"
    assert {json.loads(event)["object"] for event in events[:-1]} == {"chat.completion.chunk"}


def test_reader_that_does_not_read_over_tls_holds_up_nobody(tls: TlsRouter) -> None:
    """An answer that nobody takes over TLS waits like any other: the worker serves on, and the client is cut off."""
    body = {"model": "simulated", "stream": True, "messages": [{"role": "user", "content": "one " * 100_000}]}
    content = json.dumps(body).encode()
    context = tls.context()
    with connect(tls.port) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as deaf:
        deaf.sendall(
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(content)) + content
        )
        with tls.session() as session:
            metrics = partial(session.get, f"{tls.url}/metrics", timeout=5)
            until(lambda: "router_inflight_requests 1.0" in metrics().text, "it is being answered")
            until(lambda: "router_inflight_requests 0.0" in metrics().text, "its permit is back")


@pytest.mark.parametrize("sent", [b"", b"\x16"], ids=["nothing", "one byte"])
def test_tls_handshake_that_stops_is_given_up(tls: TlsRouter, sent: bytes) -> None:
    """A client that doesn't go on with its handshake is cut off after STALL_TIMEOUT_S, and not before."""
    began = time.monotonic()
    with connect(tls.port) as sock:
        sock.sendall(sent)
        assert read_to_end(sock) == b""
    assert time.monotonic() - began > 2.9
    assert tls.ready()


def test_tls_handshake_that_trickles_in_is_given_up(tls: TlsRouter) -> None:
    """Steady progress doesn't make a handshake endless."""
    with connect(tls.port) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00")  # a record of 512 bytes begins
        deadline = time.monotonic() + 15
        while not readable(sock, 0.05):  # to be slow is what is tested
            assert time.monotonic() < deadline, "it goes on for ever"
            sock.sendall(b"\x01")
        assert read_to_end(sock) == b""


def test_full_listener_accepts_no_more_and_the_admin_listener_still_does(start: Start) -> None:
    """worker_connections bounds each listener by itself: probes and scrapes get in when clients have filled theirs."""
    admin = free_port()
    options = ("--worker-connections", "20")
    router = start(options=options, WEB_CONCURRENCY=1, ADMIN_BIND=f"127.0.0.1:{admin}")
    held = [connect(router.port) for _ in range(20)]
    assert [ask(sock, PROBE) for sock in held] == [200] * 20
    waiting = connect(router.port)
    waiting.sendall(PROBE)
    for path in ("/metrics", "/healthz", "/readyz"):
        assert requests.get(f"http://127.0.0.1:{admin}{path}", timeout=5).status_code == 200
    assert not readable(waiting, 0.5), "it was accepted beyond worker_connections"
    assert requests.get(f"http://127.0.0.1:{admin}/healthz", timeout=5).status_code == 200
    held.pop().close()
    assert readable(waiting, 10), "nobody accepted it when there was room"
    assert waiting.recv(65536).startswith(b"HTTP/1.1 200 OK")
    for sock in (waiting, *held):
        sock.close()


def test_hooks_of_an_operator_run_once_for_every_request(start: Start, tmp_path: Path) -> None:
    """pre_request, then post_request with the answer's status: for every request, whichever path would serve it."""
    written = tmp_path / "hooks"
    written.touch()

    def hooked() -> list[str]:
        return [line for line in written.read_text().splitlines() if "/readyz" not in line]  # asked at the start

    options = ("-c", "python:tests.support.hooks_conf")
    router = start(options=options, WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0, TEST_HOOKS=written)
    missing = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(router.port) as sock:
        assert [ask(sock, request) for request in (DECLARED, CHUNKED, missing, DECLARED)] == [200, 200, 404, 200]
    served = ["pre POST /infer", "post POST /infer 200 OK"]
    wanted = [*served, *served, "pre GET /nothing", "post GET /nothing 404 Not Found", *served]
    until(lambda: len(hooked()) >= len(wanted), "the last hook has run")
    assert hooked() == wanted


def test_objects_of_the_start_are_frozen_in_the_workers(start: Start) -> None:
    """What the arbiter made before it forked is never looked through by a worker's collector."""
    router = start(app="tests.support.frozen_wsgi:application")
    assert int(requests.get(router.url + frozen_wsgi.PATH, timeout=5).text) > 10_000
