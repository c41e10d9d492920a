"""A stream is served once the event that ends it is with the client, whatever client and model server do after it."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from uuid import uuid4

import pytest

from tests.support.clients import CHAT
from tests.support.router import Router, until
from tests.support.transcripts import ANTHROPIC, DONE, OPENAI_COMPLETIONS, OPENAI_RESPONSES, VLLM
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

ShareRouted = Callable[..., tuple[Router, Upstream]]

RESPONSES = "/v1/responses"
_END_OF_BODY = b"0\r\n\r\n"


class Stream(NamedTuple):
    """A stream of one protocol."""

    path: str
    events: tuple[bytes, ...]


def ended_by(name: str) -> tuple[bytes, ...]:
    """A stream of OpenAI's responses that ends with this event."""
    last = b'event: %b\ndata: {"response":{"id":"resp_1","output":[]},"type":"%b"}\n\n' % ((name.encode(),) * 2)
    return (OPENAI_RESPONSES.events[0], last)  # the name comes last in the data, as vLLM writes it


STREAMS = {
    "chat": Stream(CHAT, VLLM.events),
    "completions": Stream("/v1/completions", OPENAI_COMPLETIONS.events),
    "responses": Stream(RESPONSES, OPENAI_RESPONSES.events),
    "responses, incomplete": Stream(RESPONSES, ended_by("response.incomplete")),
    "responses, failed": Stream(RESPONSES, ended_by("response.failed")),
    "messages": Stream("/v1/messages", ANTHROPIC.events),
}
of_each_protocol = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)


class Sent:
    """A request for a stream on a connection of its own, and what has come of the response."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.id = uuid4().hex
        self.got = b""

    def ask(self, path: str, method: str = "POST") -> None:
        """Send the request."""
        body = json.dumps({"model": "m", "stream": True, "messages": [], "input": "", "prompt": ""}).encode()
        body = body if method == "POST" else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {self.id}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.sock.sendall(head.encode() + body)

    def read_until(self, end: bytes) -> bytes:
        """Returns all that has come, once it ends so. Chunks are not joined: each event is in one."""
        while not self.got.endswith(end):
            data = self.sock.recv(65536)
            assert data, f"the connection ended after {self.got!r}"
            self.got += data
        return self.got


@contextmanager
def sent(router: Router, path: str = CHAT, method: str = "POST") -> Iterator[Sent]:
    """A request that was sent."""
    with socket.create_connection(("127.0.0.1", router.port), timeout=20) as sock:
        one = Sent(sock)
        one.ask(path, method)
        yield one


class Server:
    """A model server that sends the events, and then does what the test says."""

    def __init__(self, events: tuple[bytes, ...], then: Callable[[Reply], object]) -> None:
        self._events = events
        self._then = then
        self.connections: list[object] = []
        """By request: the other side's address."""
        self.client_left = threading.Event()
        self.hung_up = threading.Event()

    def __call__(self, seen: Seen, reply: Reply) -> None:
        self.connections.append(reply.socket.getpeername())
        reply.begin()
        for event in self._events:
            reply.chunk(event)
        self._then(reply)


class Counts:
    """What the router counts from now on."""

    def __init__(self, router: Router, upstream: Upstream) -> None:
        self._router = router
        self._url = upstream.url
        self._before = Counter(router.metrics())

    def of_clients(self, path: str, method: str = "POST") -> dict[str, float]:
        """Requests by their codes. Waits until none is in flight."""
        until(lambda: self._router.metrics()["router_inflight_requests"] == 0, "the permit is back")
        return self._by_code(f'",model="m",route="{path}"}}', "router_requests_total")

    def of_endpoint(self) -> dict[str, float]:
        """Attempts by their codes."""
        return self._by_code(f'",endpoint="{self._url}"}}', "router_endpoint_requests_total")

    def _by_code(self, end: str, name: str) -> dict[str, float]:
        begin = f'{name}{{code="'
        return {
            key.removeprefix(begin).removesuffix(end): value - self._before[key]
            for key, value in self._router.metrics().items()
            if key.startswith(begin) and key.endswith(end) and value != self._before[key]
        }


def logged_status(router: Router, request_id: str) -> int:
    """What the access log says of a request."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [event["status"] for event in router.events() if event.get("request_id") == request_id]
        return bool(found)

    until(look, "the request is logged")
    (status,) = found
    return status


def ends_when_client_has_left(server: Server, more: bytes = b"") -> Callable[[Reply], None]:
    """Ends the body after the client has left and the router could have reacted to that; if it did, notes it."""

    def then(reply: Reply) -> None:
        server.client_left.wait(20)
        if reply.wait_hung_up(0.3):
            server.hung_up.set()
            return
        if more:
            reply.chunk(more)
        reply.socket.sendall(_END_OF_BODY)

    return then


@of_each_protocol
def test_client_that_has_the_last_event_was_served(share_routed: ShareRouted, stream: Stream) -> None:
    """It hangs up before the model server ends the body. That counts as served everywhere, and the connection to the
    model server is kept for the next request."""
    server = Server(stream.events, lambda reply: then(reply))
    then = ends_when_client_has_left(server)
    router, upstream = share_routed(server)
    counts = Counts(router, upstream)
    with sent(router, stream.path) as client:
        client.read_until(stream.events[-1] + b"\r\n")
    server.client_left.set()
    assert counts.of_clients(stream.path) == {"200": 1}
    assert logged_status(router, client.id) == 200
    assert not server.hung_up.is_set()
    assert counts.of_endpoint() == {"200": 1}
