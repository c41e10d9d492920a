"""A model server that does what a test says: it remembers what it was sent and answers as it is told."""

import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

from tests.support.http_server import HttpServer, QuietConnections


class Seen(NamedTuple):
    """A request that arrived. Header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Reply:
    """What an answer is written with."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        self.socket: socket.socket = handler.connection

    def send(self, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        """A whole answer."""
        self._handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def begin(self, status: int = 200, **headers: str) -> None:
        """The head of a chunked answer."""
        self._handler.send_response(status)
        for name, value in {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **headers}.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()

    def chunk(self, data: bytes = b"") -> None:
        """A chunk of it; an empty one ends it."""
        self._handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def raw(self, data: bytes) -> None:
        """Any bytes; the connection is closed afterwards."""
        self._handler.wfile.write(data)
        self._handler.close_connection = True

    def wait_hung_up(self, seconds: float = 20) -> bool:
        """Whether the router hung up within this time."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


Answer = Callable[[Seen, Reply], object]
"""What a model server does with a request."""


def send_empty(seen: Seen, reply: Reply) -> None:
    """Answers with an empty JSON object."""
    reply.send()


class Upstream(HttpServer):
    """`with Upstream(answer) as upstream:` serves on a free port, or on `port`, with a thread for each connection."""

    def __init__(self, answer: Answer = send_empty, port: int = 0, host: str = "127.0.0.1") -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.checks = 0
        self.well = True
        self.check_delay_s = 0.0
        """How long a health check waits for its response."""
        self._inside = 0
        self._changed = threading.Condition()
        outer = self

        class Handler(QuietConnections, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path in ("/v1/models", "/v2/health/ready"):  # the router's health check
                    well = outer.well  # first: one that a test has counted tells nothing of what it sets then
                    outer.checks += 1
                    time.sleep(outer.check_delay_s)
                    Reply(self).send(200 if well else 503)
                else:
                    self.do_POST()

            def do_POST(self) -> None:
                body = outer._read_body(self)
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(self.command, self.path, headers, body)
                with outer._changed:
                    outer.seen.append(seen)
                    outer._inside += 1
                    outer._changed.notify_all()
                try:
                    outer.answer(seen, Reply(self))
                except ConnectionError:
                    self.close_connection = True
                finally:
                    with outer._changed:
                        outer._inside -= 1
                        outer._changed.notify_all()

            def do_DELETE(self) -> None:
                self.do_POST()

        super().__init__(Handler, port, host)

    @staticmethod
    def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
        if handler.headers.get("Transfer-Encoding") != "chunked":
            return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(handler.rfile.readline(), 16):
            chunks.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(chunks)

    def reset(self, answer: Answer) -> None:
        """Serve another test: answer so from now on, and forget what was seen. Waits until nothing is answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._inside == 0, 20), "a request of an earlier test is here"
            self.answer = answer
            self.seen.clear()

    @property
    def inside(self) -> int:
        """Requests that are being answered."""
        with self._changed:
            return self._inside

    def wait_seen(self, count: int, seconds: float = 20) -> None:
        """Return once so many requests have arrived in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, seconds), f"{len(self.seen)}, not {count}"


class Hold:
    """An answer that comes when the test says: `Upstream(hold)` holds every request until `hold.release()`."""

    def __init__(self, body: bytes = b"{}") -> None:
        self._go = threading.Event()
        self._body = body

    def __call__(self, seen: Seen, reply: Reply) -> None:
        self._go.wait(60)
        reply.send(200, self._body)

    def release(self) -> None:
        """Answer those that wait, and from now on at once."""
        self._go.set()
