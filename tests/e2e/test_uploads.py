"""Forms with a file: they pass as they arrive, byte for byte, at the endpoint's speed, and in little memory."""

import hashlib
import re
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.clients import read_all, readable
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.scripted_server import Peer, ScriptedServer
from tests.support.upstream import Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]
Routed = Callable[..., tuple[Router, Upstream]]
MIB = 1 << 20
PATH = "/v1/audio/transcriptions"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
INFLIGHT = "router_inflight_requests"


def part(name: str, value: bytes, more: str = "") -> bytes:
    """A part of a form, with the delimiter before it."""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def form(file: bytes, model: bytes = b"m") -> bytes:
    """A form with a model, a file and a field after it."""
    return part("model", model) + part("file", file, '; filename="a.wav"') + part("language", b"en") + b"--x--\r\n"


def head(length: int | None, strict: bool = False, path: str = PATH, more: str = "") -> bytes:
    """The head of a request with a form: chunked without a length, for gunicorn's parser if `strict`."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    twice = "X: 1\r\nX: 2\r\n" if strict else ""
    fields = f"Host: h\r\nContent-Type: multipart/form-data; boundary=x\r\n{more}{twice}{framing}"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode()


def chunked(body: bytes, size: int = 50_000) -> bytes:
    """The body in chunks of this size."""
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def connect(router: Router) -> socket.socket:
    """A client that has said nothing yet."""
    return socket.create_connection(("127.0.0.1", router.port), timeout=20)


def response_to(sock: socket.socket) -> bytes:
    """One response, as far as it comes without the connection's end."""
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith(b"}"):
        more = sock.recv(65536)
        if not more:
            return data
        data += more
    return data


def wait_idle(router: Router) -> None:
    """Return when nothing holds a permit."""
    until(lambda: router.metrics()[INFLIGHT] == 0, "the permit is back")


def model(*urls: str, **members: Any) -> dict[str, Any]:
    """A model of a routes file, without health checks."""
    return {"name": "m", "endpoints": [*urls], "health_check": {"interval_s": 0}, **members}


@pytest.fixture
def routed(share_routed: Routed) -> tuple[Router, Upstream]:
    """A router with one worker and its model server, for all tests that need nothing else."""
    return share_routed(WEB_CONCURRENCY=1, MAX_UPLOAD_BYTES=8 * MIB, MAX_CONCURRENCY=1)


@pytest.mark.parametrize("path", [PATH, "/v1/audio/translations", "/v1/images/edits?a=b"])
@pytest.mark.parametrize("strict", [False, True], ids=["fast", "strict"])
@pytest.mark.parametrize("framing", ["declared", "chunked"])
@pytest.mark.parametrize("size", [0, 60_000, 65_536, 5 * MIB])
def test_form_passes_byte_for_byte(
    routed: tuple[Router, Upstream], path: str, strict: bool, framing: str, size: int
) -> None:
    """Whatever its size and framing, on either path through the server; longer than MAX_BODY_BYTES, too."""
    router, upstream = routed
    body = form(bytes(range(256)) * (size // 256))
    sent = body if framing == "declared" else chunked(body)
    with connect(router) as sock:
        sock.sendall(head(len(body) if framing == "declared" else None, strict, path) + sent)
        assert response_to(sock).startswith(b"HTTP/1.1 200 OK")
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")  # the body was read to its end: the connection is kept
    (seen,) = upstream.seen
    assert (seen.path, seen.body == body) == (path, True)
    assert seen.headers["content-type"] == "multipart/form-data; boundary=x"
    short = framing == "declared" or len(body) < 65_536
    assert seen.headers.get("content-length") == (str(len(body)) if short else None)
    assert seen.headers.get("transfer-encoding") == (None if short else "chunked")


def test_another_name_is_put_in(start: Start, serve: Serve, routes: Routes) -> None:
    """The value of the field `model` is replaced, and the length fits; all other bytes stay."""
    upstream = serve()
    router = start(ROUTES_FILE=routes(model(upstream.url, upstream_model="a/longer-name")), WEB_CONCURRENCY=1)
    for size in (10, MIB):
        body = form(b"z" * size)
        for sent in (head(len(body)) + body, head(None) + chunked(body)):
            with connect(router) as sock:
                sock.sendall(sent)
                assert response_to(sock).startswith(b"HTTP/1.1 200 OK")
            assert upstream.seen[-1].body == form(b"z" * size, b"a/longer-name")


def test_curl_waits_for_100_continue(routed: tuple[Router, Upstream]) -> None:
    """A client that expects `100 Continue` gets it before it sends its form, and once."""
    router, upstream = routed
    body = form(b"z" * MIB)
    with connect(router) as sock:
        sock.sendall(head(len(body), more="Expect: 100-continue\r\n"))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert response_to(sock).startswith(b"HTTP/1.1 200 OK")
    assert upstream.seen[0].body == body


# Memory and speed.


def peak_of(pid: int) -> int:
    """The most memory that a process has had since it was reset, in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def reset_peak_of(pid: int) -> None:
    """Count the peak from here."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class Digest:
    """What an endpoint has received: it keeps a hash only. It reads while its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Event()
        self.sha = hashlib.sha256()
        self.size = 0

    def __call__(self, peer: Peer) -> None:
        found = re.search(rb"content-length: (\d+)", peer.read_head())
        assert found
        self.began.set()
        assert self.gate.wait(20)
        while self.size < int(found[1]):
            piece = peer.read_some()
            assert piece, "the router hung up"
            self.sha.update(piece)
            self.size += len(piece)
        peer.send(OK)
        peer.close()


@pytest.mark.parametrize("strict", [False, True], ids=["fast", "strict"])
def test_upload_of_200_mib_takes_little_memory_and_waits_for_the_endpoint(
    start: Start, routes: Routes, strict: bool
) -> None:
    """What the endpoint has not taken is not read from the client; and however long the file, no more is held."""
    digest, sha = Digest(), hashlib.sha256()
    pieces = [part("model", b"m"), part("file", b"", '; filename="a"')[:-2], *[b"0123456789abcdef" * 65536] * 200]
    pieces.append(b"\r\n--x--\r\n")
    length = sum(map(len, pieces))
    with ScriptedServer(digest) as server:
        router = start(ROUTES_FILE=routes(model(f"http://127.0.0.1:{server.port}")), WEB_CONCURRENCY=1)
        (worker,) = router.workers()
        reset_peak_of(worker)
        before = peak_of(worker)
        with connect(router) as sock:
            sock.sendall(head(length, strict))
            sock.settimeout(0.5)  # nothing is taken for so long: the buffers between here and there are full
            taken, left = 0, [memoryview(one) for one in reversed(pieces)]
            try:
                while left:
                    piece = left.pop()
                    sent = sock.send(piece)
                    taken += sent
                    if sent < len(piece):
                        left.append(piece[sent:])
            except TimeoutError:
                left.append(piece)
            assert digest.began.wait(20)
            assert taken < 40 * MIB  # what the kernel's buffers hold
            sock.settimeout(20)
            digest.gate.set()
            for rest in reversed(left):
                sock.sendall(rest)
            assert response_to(sock).startswith(b"HTTP/1.1 200 OK")
        assert peak_of(worker) - before < 8 * MIB
        for one in pieces:
            sha.update(one)
        assert (digest.size, digest.sha.digest()) == (length, sha.digest())


# Clients that stop.


class Waiting:
    """An endpoint that reads heads and what follows. Tests meet it when it has read so many, and when all are gone."""

    def __init__(self, count: int = 1) -> None:
        self.began = threading.Barrier(count + 1)
        self.hung_up = threading.Barrier(count + 1)

    def __call__(self, peer: Peer) -> None:
        peer.read_head()
        self.began.wait(20)
        peer.wait_hung_up()
        self.hung_up.wait(20)


def attempts(router: Router, code: str) -> float:
    """How many attempts ended so, at whichever endpoint."""
    return sum(
        value
        for name, value in router.metrics().items()
        if name.startswith("router_endpoint_requests_total") and f'code="{code}"' in name
    )


STOPPED = {
    f"{framing}, {'strict' if strict else 'fast'}": (
        (head(400_300, strict) if framing == "declared" else head(None, strict) + b"80000\r\n")
        + form(b"z" * 400_000)[:100_000]
    )
    for framing in ("declared", "chunked")
    for strict in (False, True)
}
"""The beginnings of uploads, 100 kB of each form."""


@pytest.mark.parametrize("how", ["stalls", "trickles"])
def test_client_that_does_not_go_on_is_told_and_costs_nothing_for_long(start: Start, routes: Routes, how: str) -> None:
    """408 after STALL_TIMEOUT_S without a byte, or UPLOAD_TIMEOUT_S in all: the permit is back, the endpoint is left.

    The endpoint is not at fault, so nothing is counted against it.
    """
    endpoint = Waiting(len(STOPPED))
    timeouts = {"STALL_TIMEOUT_S": 2} if how == "stalls" else {"UPLOAD_TIMEOUT_S": 2}
    with ScriptedServer(endpoint) as server, ExitStack() as stack:
        routes_file = routes(model(f"http://127.0.0.1:{server.port}", ejection={"consecutive_failures": 1}))
        router = start(ROUTES_FILE=routes_file, WEB_CONCURRENCY=1, MAX_CONCURRENCY=len(STOPPED), **timeouts)
        clients = {name: stack.enter_context(connect(router)) for name in STOPPED}
        for name, sock in clients.items():
            sock.sendall(STOPPED[name])
        endpoint.began.wait(20)
        while clients:
            for name, sock in list(clients.items()):
                if readable(sock, 0.02):  # to be slow is what is tested
                    assert response_to(clients.pop(name)).startswith(b"HTTP/1.1 408 "), name
                elif how == "trickles":
                    sock.sendall(b"z")
        endpoint.hung_up.wait(20)
        wait_idle(router)
        assert attempts(router, "499") == len(STOPPED)
        until(lambda: router.metrics()["router_queue_wait_seconds_count"] == len(STOPPED), "each had a permit")
        assert "ejected" not in router.log()


def test_client_that_leaves_in_an_upload_costs_nothing_for_long(start: Start, routes: Routes) -> None:
    """The endpoint is left and the permit comes back at once, long before a timeout; the endpoint is not at fault."""
    endpoint = Waiting(len(STOPPED))
    with ScriptedServer(endpoint) as server, ExitStack() as stack:
        routes_file = routes(model(f"http://127.0.0.1:{server.port}", ejection={"consecutive_failures": 1}))
        router = start(ROUTES_FILE=routes_file, WEB_CONCURRENCY=1, MAX_CONCURRENCY=len(STOPPED))
        for begun in STOPPED.values():
            stack.enter_context(connect(router)).sendall(begun)
        endpoint.began.wait(10)
        stack.close()
        endpoint.hung_up.wait(10)
        wait_idle(router)
        until(lambda: attempts(router, "499") == len(STOPPED), "all are counted")
        assert "ejected" not in router.log()


def test_time_in_the_queue_does_not_count_as_upload(start: Start, routes: Routes, serve: Serve) -> None:
    """A form that waited for a permit longer than UPLOAD_TIMEOUT_S is served: its client could not send."""
    upstream = serve()
    endpoint = Waiting()
    body = form(b"z" * 1_000_000)
    with ScriptedServer(endpoint) as server:
        slow = model(f"http://127.0.0.1:{server.port}")
        router = start(
            ROUTES_FILE=routes(model(upstream.url), {**slow, "name": "slow"}),
            WEB_CONCURRENCY=1,
            MAX_CONCURRENCY=1,
            QUEUE_SIZE=1,
            QUEUE_TIMEOUT_MS=20_000,
            UPLOAD_TIMEOUT_S=3,
        )
        with connect(router) as first, connect(router) as second:
            chat = b'{"model":"slow","messages":[]}'
            fields = b"Host: h\r\nContent-Length: %d\r\n\r\n" % len(chat)
            first.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + fields + chat)
            endpoint.began.wait(10)
            second.sendall(head(len(body)) + body[:70_000])
            until(lambda: router.metrics()["router_queued_requests"] == 1, "the form waits")
            assert not readable(second, 3.3)  # the wait is what is tested
            first.close()
            endpoint.hung_up.wait(10)
            second.sendall(body[70_000:])
            assert response_to(second).startswith(b"HTTP/1.1 200 OK")
    assert upstream.seen[0].body == body


# Endpoints that do not read to the end.


def test_early_error_is_passed_on_while_the_client_pauses(start: Start, routes: Routes) -> None:
    """An endpoint that refuses a file before all of it has come is heard at once, and the rest is not sent.

    It may hang up then, or stay.
    """

    def refuse(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")

    def refuse_and_close(peer: Peer) -> None:
        refuse(peer)
        peer.close()

    body = form(b"z" * 400_000)
    with ScriptedServer(refuse, refuse_and_close) as server:
        router = start(ROUTES_FILE=routes(model(f"http://127.0.0.1:{server.port}")), WEB_CONCURRENCY=1)
        for strict in (False, True):
            with connect(router) as sock:
                sock.sendall(head(len(body), strict) + body[:100_000])
                assert readable(sock, 10)  # long before STALL_TIMEOUT_S
                assert response_to(sock).startswith(b"HTTP/1.1 413 ")
                wait_idle(router)


def test_response_that_begins_early_passes_while_the_rest_is_sent(start: Start, routes: Routes) -> None:
    """An endpoint that has accepted the form may respond while it reads; both go on."""
    body = form(b"z" * 400_000)
    received: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n")
        while len(b"".join(received)) < len(body):
            received.append(peer.read_some())
        peer.send(b"1\r\n}\r\n0\r\n\r\n")

    with ScriptedServer(script) as server:
        router = start(ROUTES_FILE=routes(model(f"http://127.0.0.1:{server.port}")), WEB_CONCURRENCY=1)
        with connect(router) as sock:
            sock.sendall(head(len(body)) + body[:100_000])
            data = b""
            while b"1\r\n{\r\n" not in data:
                data += sock.recv(65536)
            sock.sendall(body[100_000:])
            assert read_all(sock).endswith(b"1\r\n}\r\n0\r\n\r\n")
        assert b"".join(received) == body


def nobody() -> str:
    """The URL of a server that isn't there."""
    return f"http://127.0.0.1:{free_port()}"


def test_connection_that_fails_is_tried_elsewhere(start: Start, serve: Serve, routes: Routes) -> None:
    """Nobody has seen a byte of the form, so another endpoint gets all of it."""
    upstream = serve()
    routes_file = routes(model(nobody(), upstream.url, balancing="round_robin"))
    router = start(ROUTES_FILE=routes_file, WEB_CONCURRENCY=1)
    body = form(b"z" * MIB)
    for _ in range(4):
        with connect(router) as sock:
            sock.sendall(head(len(body)) + body)
            assert response_to(sock).startswith(b"HTTP/1.1 200 OK")
    assert [seen.body == body for seen in upstream.seen] == [True] * 4
    assert router.metrics()['router_retries_total{reason="unreachable"}'] >= 1


def test_what_can_not_be_sent_again_is_not(start: Start, serve: Serve, routes: Routes) -> None:
    """A 503 after bytes that the router has not kept is the client's. A form that is held whole goes elsewhere."""
    pair = [serve(lambda seen, reply: reply.send(503)) for _ in range(2)]
    router = start(ROUTES_FILE=routes(model(*(one.url for one in pair))), WEB_CONCURRENCY=1)
    for size, tries in ((100, 2), (MIB, 1)):
        before = sum(len(one.seen) for one in pair)
        body = form(b"z" * size)
        with connect(router) as sock:
            sock.sendall(head(len(body)) + body)
            assert response_to(sock).startswith(b"HTTP/1.1 503 ")
        assert sum(len(one.seen) for one in pair) - before == tries


# Forms that are refused.


FILE = part("file", b"z" * 100_000, '; filename="a"')
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "no boundary": ("multipart/form-data", form(b"z"), "boundary"),
    "long boundary": (f"multipart/form-data; boundary={'x' * 71}", form(b"z"), "boundary"),
    "two models": ("", part("model", b"m") + form(b"z"), "twice"),
    "late model": ("", FILE + form(b"z"), "first 65536 bytes"),
    "no model": ("", part("file", b"z") + b"--x--\r\n", "first 65536 bytes"),
    "huge head": ("", b"--x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", "head is longer"),
    "file called model": ("", part("model", b"m", '; filename="a"') + b"--x--\r\n", "plain text"),
    "bare line feed": ("", form(b"z").replace(b"\r\n--x", b"\n--x", 1), "line end"),
}


@pytest.mark.parametrize("framing", ["declared", "chunked"])
@pytest.mark.parametrize("name", REFUSED)
def test_malformed_form_is_400_and_costs_no_permit(routed: tuple[Router, Upstream], name: str, framing: str) -> None:
    """It is refused before a permit is asked for, with what is wrong; no endpoint sees it."""
    router, upstream = routed
    permits = router.metrics().get("router_queue_wait_seconds_count", 0)
    content_type, body, says = REFUSED[name]
    headers = {"Content-Type": content_type or "multipart/form-data; boundary=x"}
    data: Any = body if framing == "declared" else iter([body])
    response = requests.post(router.url + PATH, data=data, headers=headers, timeout=20)
    assert (response.status_code, says in response.text) == (400, True), response.text
    assert response.json()["error"]["code"] == "invalid_request"
    assert upstream.seen == []
    assert router.metrics().get("router_queue_wait_seconds_count", 0) == permits


def test_second_model_far_behind_is_found_and_the_form_is_cut_off(start: Start, routes: Routes) -> None:
    """The endpoint never gets the end of a form that names two models: one would be limited and another one run."""
    received = []

    def script(peer: Peer) -> None:
        peer.read_head()
        while piece := peer.read_some():
            received.append(piece)

    body = part("model", b"m") + FILE * 3 + part("model", b"other") + b"--x--\r\n"
    with ScriptedServer(script) as server:
        router = start(ROUTES_FILE=routes(model(f"http://127.0.0.1:{server.port}")), WEB_CONCURRENCY=1)
        for sent in (head(len(body)) + body, head(len(body), strict=True) + body, head(None) + chunked(body)):
            with connect(router) as sock:
                sock.sendall(sent)
                response = response_to(sock)
            assert response.startswith(b"HTTP/1.1 400 ")
            assert b"twice" in response
        wait_idle(router)
    assert b"other" not in b"".join(received)


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_upload_over_its_limit_is_413(routed: tuple[Router, Upstream], framing: str) -> None:
    """MAX_UPLOAD_BYTES: a declared length is refused unread, and a chunked form as soon as it is longer."""
    router, upstream = routed
    body = form(b"z" * 9 * MIB)
    data: Any = body if framing == "declared" else iter([body])
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = requests.post(router.url + PATH, data=data, headers=headers, timeout=20)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert upstream.seen == []
    wait_idle(router)


@pytest.mark.parametrize(
    ("path", "content_type", "accepts"),
    [
        (PATH, "application/json", "multipart/form-data"),
        ("/v1/chat/completions", "multipart/form-data; boundary=x", "application/json"),
    ],
)
def test_body_of_the_wrong_kind_is_415(
    routed: tuple[Router, Upstream], path: str, content_type: str, accepts: str
) -> None:
    """The response says which kind the path takes (RFC 9110 section 15.5.16)."""
    response = requests.post(routed[0].url + path, data=b"{}", headers={"Content-Type": content_type}, timeout=20)
    assert (response.status_code, response.headers["Accept"]) == (415, accepts)
