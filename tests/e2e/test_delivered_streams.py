"""A stream is served once the event that ends it is with the client, whatever client and model server do after it."""

import functools
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import requests

from tests.support.clients import CHAT, read_all, readable
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.transcripts import ANTHROPIC, DONE, OPENAI_COMPLETIONS, OPENAI_RESPONSES, VLLM
from tests.support.upstream import Answer, Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Options = tuple[str, ...]

PATIENT: Options = ("-c", "python:tests.support.patient_conf")
"""Options of a router that waits for longer than a second for the end of a body."""
RESPONSES = "/v1/responses"
END_OF_BODY = b"0\r\n\r\n"
COMMENT = b": bye\n\n"


class Stream(NamedTuple):
    """A stream of one protocol."""

    path: str
    events: tuple[bytes, ...]


def ended_by(name: str) -> tuple[bytes, ...]:
    """A stream of OpenAI's responses that ends with this event; its type comes last in the data, as vLLM writes it."""
    last = b'event: %b\ndata: {"response":{"id":"resp_1","output":[]},"type":"%b"}\n\n' % ((name.encode(),) * 2)
    return OPENAI_RESPONSES.events[0], last


STREAMS = {
    "chat": Stream(CHAT, VLLM.events),
    "completions": Stream("/v1/completions", OPENAI_COMPLETIONS.events),
    "responses": Stream(RESPONSES, OPENAI_RESPONSES.events),
    "responses, incomplete": Stream(RESPONSES, ended_by("response.incomplete")),
    "responses, failed": Stream(RESPONSES, ended_by("response.failed")),
    "messages": Stream("/v1/messages", ANTHROPIC.events),
}
of_each_protocol = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)


class Client:
    """A client that has asked for a stream, and what it has read of the response."""

    def __init__(self, sock: socket.socket, path: str, method: str = "POST") -> None:
        self.sock = sock
        self.id = uuid4().hex
        self.got = b""
        body = b'{"model":"m","stream":true,"messages":[],"input":"","prompt":""}' if method == "POST" else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {self.id}\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)

    def read_until(self, end: bytes) -> bytes:
        """Returns all that was read, once it ends so. No event is cut by a chunk unless the model server cuts it."""
        while not self.got.endswith(end):
            data = self.sock.recv(65536)
            assert data, f"the connection ended after {self.got[-200:]!r}"
            self.got += data
        return self.got


@contextmanager
def asking(router: Router, path: str = CHAT, method: str = "POST") -> Iterator[Client]:
    """A client, which hangs up at the end."""
    with socket.create_connection(("127.0.0.1", router.port), timeout=20) as sock:
        yield Client(sock, path, method)


class Server:
    """A model server that sends these pieces as chunks, and then does what the test says."""

    def __init__(self, *pieces: bytes, then: Callable[[Reply, "Server"], object]) -> None:
        self._pieces = pieces
        self._then = then
        self.connections: list[Any] = []
        """Those that the requests came on."""
        self.client_left = threading.Event()
        self.left_alone = threading.Event()
        """Set when the router has hung up although the client has the last event."""

    def __call__(self, seen: Seen, reply: Reply) -> None:
        self.connections.append(reply.socket.getpeername())
        reply.begin()
        for piece in self._pieces:
            reply.chunk(piece)
        self._then(reply, self)

    def wait_until_client_left(self, reply: Reply) -> None:
        """Return after the client has left, and the router had the time to react. It must not."""
        assert self.client_left.wait(20)
        if readable(reply.socket, 0.3):
            self.left_alone.set()


def ends_when_client_has_left(reply: Reply, server: Server) -> None:
    """The body ends as it should, but late."""
    server.wait_until_client_left(reply)
    reply.socket.sendall(END_OF_BODY)


def goes_on_when_client_has_left(reply: Reply, server: Server) -> None:
    """More than the last event follows it: what is written to a client that has left fails."""
    server.wait_until_client_left(reply)
    for _ in range(3):
        reply.chunk(COMMENT)
        readable(reply.socket, 0.05)  # each is read by itself
    reply.socket.sendall(END_OF_BODY)


def never_ends(reply: Reply, server: Server) -> None:
    """The body stays open. The router hangs up in the end."""
    if reply.wait_hung_up():
        server.left_alone.set()


def hangs_up(reply: Reply, server: Server) -> None:
    """The connection ends without the last chunk."""
    reply.raw(b"")


def resets(reply: Reply, server: Server) -> None:
    """The connection breaks."""
    reply.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reply.raw(b"")


def sends_nonsense(reply: Reply, server: Server) -> None:
    """What follows is no chunk."""
    reply.raw(b"zz\r\n")


def sends_on_and_on(reply: Reply, server: Server) -> None:
    """Whatever the event says, it does not end the stream."""
    try:
        while True:
            reply.chunk(b": more\n\n" * 1000)
    except OSError:
        server.left_alone.set()
        raise


def trickles(reply: Reply, server: Server) -> None:
    """There is always something that follows, within any wait for the next byte."""
    while not readable(reply.socket, 0.05):
        reply.chunk(b":\n\n")
    server.left_alone.set()


class Setting:
    """A router of one worker, its model server, and what it counts from now on."""

    def __init__(self, router: Router, upstream: Upstream, admin_port: int) -> None:
        self.router = router
        self._url = upstream.url
        self._admin = f"http://127.0.0.1:{admin_port}/admin"
        self._before = Counter(router.metrics())

    def clients(self, path: str = CHAT) -> dict[str, float]:
        """Requests by their codes. Waits until none is in flight."""
        until(lambda: self.router.metrics()["router_inflight_requests"] == 0, "the permit is back")
        return self._by_code("router_requests_total", f'",model="m",route="{path}"}}')

    def attempts(self) -> dict[str, float]:
        """Attempts by their codes."""
        return self._by_code("router_endpoint_requests_total", f'",endpoint="{self._url}"}}')

    def record(self, client: Client) -> dict[str, Any]:
        """The record of a request, and the status that the access log has of it."""
        found: dict[str, Any] = requests.get(f"{self._admin}/requests/{client.id}", timeout=20).json()
        (logged,) = (event for event in self.router.events() if event.get("request_id") == client.id)
        assert logged["status"] == found["status"]
        return found

    def is_up(self) -> bool:
        """Whether the endpoint is not ejected."""
        return self.router.metrics()[f'router_endpoint_up{{endpoint="{self._url}"}}'] == 1

    def _by_code(self, name: str, end: str) -> dict[str, float]:
        begin = f'{name}{{code="'
        return {
            key.removeprefix(begin).removesuffix(end): value - self._before[key]
            for key, value in self.router.metrics().items()
            if key.startswith(begin) and key.endswith(end) and value != self._before[key]
        }


@pytest.fixture(scope="session")
def admin_port() -> Callable[[Options], int]:
    """Returns where the records of the router with these options are read."""
    return functools.cache(lambda options: free_port())


ServeBy = Callable[..., Setting]


@pytest.fixture(scope="session")
def routes_file(serving: Callable[[Any], Upstream], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `m`, whose endpoint one failure ejects."""
    file = tmp_path_factory.mktemp("delivered") / "routes.json"
    model = {"name": "m", "endpoints": [serving(__name__).url], "health_check": {"interval_s": 0}}
    file.write_text(json.dumps({"models": [{**model, "ejection": {"consecutive_failures": 1, "max_share": 1}}]}))
    return file


@pytest.fixture
def serve_by(
    share: Callable[..., Router],
    serving: Callable[[Any], Upstream],
    routes_file: Path,
    admin_port: Callable[[Options], int],
) -> ServeBy:
    """Returns the setting in which the model server responds so, to a router with these options."""

    def serve_by(answer: Answer, options: Options = PATIENT) -> Setting:
        upstream, port = serving(__name__), admin_port(options)
        upstream.reset(answer)
        settings = {"ROUTES_FILE": routes_file, "ADMIN_BIND": f"127.0.0.1:{port}", "ACCESS_LOG": "all"}
        return Setting(share(options=options, WEB_CONCURRENCY=1, **settings), upstream, port)

    return serve_by


@of_each_protocol
def test_client_that_has_the_last_event_was_served(serve_by: ServeBy, stream: Stream) -> None:
    """It hangs up before the body has ended. Every count says so, and the model server's connection is kept."""
    server = Server(*stream.events, then=ends_when_client_has_left)
    setting = serve_by(server)
    for _ in range(2):
        server.client_left.clear()
        with asking(setting.router, stream.path) as client:
            client.read_until(stream.events[-1] + b"\r\n")
        server.client_left.set()
        until(lambda: setting.router.metrics()["router_inflight_requests"] == 0, "the permit is back")
    assert setting.clients(stream.path) == setting.attempts() == {"200": 2}
    record = setting.record(client)
    assert (record["outcome"], record["status"], record["attempts"][0]["outcome"]) == ("served", 200, "200")
    assert not server.left_alone.is_set()
    assert len(set(server.connections)) == 1


def test_what_follows_is_read_for_nobody(serve_by: ServeBy) -> None:
    """Writes to a client that has left fail. The rest is read all the same, and the connection is kept."""
    server = Server(*VLLM.events, then=goes_on_when_client_has_left)
    setting = serve_by(server)
    for _ in range(2):
        server.client_left.clear()
        with asking(setting.router) as client:
            client.read_until(DONE + b"\r\n")
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.client_left.set()
        until(lambda: setting.router.metrics()["router_inflight_requests"] == 0, "the permit is back")
    assert setting.clients() == setting.attempts() == {"200": 2}
    assert len(set(server.connections)) == 1


def test_what_follows_reaches_a_client_that_stays(serve_by: ServeBy) -> None:
    """Nothing is changed or left out."""

    def then(reply: Reply, server: Server) -> None:
        assert server.client_left.wait(20)  # here: it has read the last event
        reply.chunk(COMMENT)
        reply.socket.sendall(END_OF_BODY)

    server = Server(*VLLM.events, then=then)
    setting = serve_by(server)
    with asking(setting.router) as client:
        client.read_until(DONE + b"\r\n")
        server.client_left.set()
        got = client.read_until(END_OF_BODY)
    assert got.endswith(DONE + b"\r\n7\r\n" + COMMENT + b"\r\n" + END_OF_BODY)


@pytest.mark.parametrize("then", [never_ends, trickles, sends_on_and_on])
@pytest.mark.parametrize("stays", [True, False], ids=["client stays", "client leaves"])
def test_server_that_does_not_end_its_body_is_left(
    serve_by: ServeBy, then: Callable[[Reply, Server], object], stays: bool
) -> None:
    """After a second, or after more than a few bytes. The client's response ends in order, as does its connection."""
    server = Server(*VLLM.events, then=then)
    setting = serve_by(server, ())
    with asking(setting.router) as client:
        if stays:
            assert DONE in client.read_until(END_OF_BODY)
            assert len(client.got) < 200_000  # what came with the event, and 64 KiB
            client.got = b""
            client.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_all(client.sock).startswith(b"HTTP/1.1 200")
        else:
            while DONE not in client.got:
                client.got += client.sock.recv(65536)
    assert server.left_alone.wait(20)
    assert setting.clients() == setting.attempts() == {"200": 1}
    assert setting.is_up()


@of_each_protocol
@pytest.mark.parametrize("then", [hangs_up, resets, sends_nonsense])
def test_server_that_breaks_off_after_the_last_event_has_not_failed(
    serve_by: ServeBy, stream: Stream, then: Callable[[Reply, Server], object]
) -> None:
    """The client has all of it: its response ends in order, nothing counts as failed, and no endpoint is ejected."""

    def once_it_is_read(reply: Reply, server: Server) -> None:
        assert server.client_left.wait(20)  # here: it has read the last event
        then(reply, server)

    server = Server(*stream.events, then=once_it_is_read)
    setting = serve_by(server)
    with asking(setting.router, stream.path) as client:
        client.read_until(stream.events[-1] + b"\r\n")
        server.client_left.set()
        client.read_until(END_OF_BODY)
    assert setting.clients(stream.path) == setting.attempts() == {"200": 1}
    assert setting.record(client)["outcome"] == "served"
    assert setting.is_up()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CR LF"])
@pytest.mark.parametrize("name", ["chat", "responses, failed", "messages"])
def test_last_event_may_be_cut_anywhere(serve_by: ServeBy, name: str, line_end: bytes) -> None:
    """It is known by its bytes, in whatever pieces they are read: here two, cut at every place."""
    stream = STREAMS[name]
    last = stream.events[-1].replace(b"\n", line_end)
    cut, first_part_is_read = 0, threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(stream.events[0].replace(b"\n", line_end) + last[:cut])
        assert first_part_is_read.wait(20)
        reply.chunk(last[cut:])
        reply.raw(b"")

    setting = serve_by(answer)
    for cut in range(len(last)):
        first_part_is_read.clear()
        with asking(setting.router, stream.path) as client:
            client.read_until(last[:cut] + b"\r\n")
            first_part_is_read.set()
            client.read_until(END_OF_BODY)
    assert setting.clients(stream.path) == {"200": len(last)}


@of_each_protocol
def test_client_that_leaves_one_byte_before_the_end_was_not_served(serve_by: ServeBy, stream: Stream) -> None:
    """A library would not have read the event either."""
    *before, last = stream.events
    server = Server(*before, last[:-1], then=never_ends)
    setting = serve_by(server)
    with asking(setting.router, stream.path) as client:
        client.read_until(last[:-1] + b"\r\n")
    assert setting.clients(stream.path) == setting.attempts() == {"499": 1}
    assert setting.record(client)["outcome"] == "client_left"


def test_stream_of_an_earlier_response_is_delivered_too(serve_by: ServeBy) -> None:
    """Nothing is counted of its tokens, but its end is known."""
    events = OPENAI_RESPONSES.events
    server = Server(*events, then=ends_when_client_has_left)
    setting = serve_by(server)
    server.client_left.set()
    with asking(setting.router, RESPONSES) as client:
        client.read_until(END_OF_BODY)
    server.client_left.clear()
    with asking(setting.router, f"{RESPONSES}/resp_1?stream=true", "GET") as client:
        client.read_until(events[-1] + b"\r\n")
    server.client_left.set()
    until(lambda: setting.router.metrics()["router_inflight_requests"] == 0, "the permit is back")
    assert setting.record(client)["status"] == 200
    assert not server.left_alone.is_set()
    assert len(set(server.connections)) == 1


def test_stream_of_known_length_ends_with_its_last_byte(
    share_routed: Callable[..., tuple[Router, Upstream]],
) -> None:
    """A client that waits for the bytes that are missing must not take the response for whole."""

    def answer(seen: Seen, reply: Reply) -> None:
        reply.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100000\r\n\r\n")
        reply.raw(b"".join(VLLM.events))

    router, _ = share_routed(answer)
    failed = f'router_requests_total{{code="502",model="m",route="{CHAT}"}}'
    before = router.metrics().get(failed, 0)
    with asking(router) as client:
        got = read_all(client.sock)
    assert got.endswith(DONE)
    assert b"\r\ncontent-length: 100000\r\n" in got.lower()
    until(lambda: router.metrics().get(failed, 0) == before + 1, "it has failed")
