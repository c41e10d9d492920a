"""A client's connection: what it is doing, and gunicorn's reading and writing with our few differences.

- **Slow clients.** A client that for STALL_TIMEOUT_S sends no more of its request, or takes no more of its answer, is
  cut off: `recv` and `sendall` raise TimeoutError. Any progress begins that time anew (for who reads, see `_send`), but
  what is read must also be done in the time that `allow` gives: a request that trickles in ends, too.
- **Unread bodies.** A body the application did not read (413) is not waited for: the answer says `Connection: close`
  and what still arrives is discarded for a moment, so that the client gets to read the answer.
- **`Expect: 100-continue`** is answered when the application first reads, so a refused body need not be sent.
- **Malformed requests** are answered with a problem document, with the status that gunicorn's parser gives them.
"""

import fcntl
import select
import socket
import struct
import termios
import time
from array import array
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import gevent
from gevent.monkey import get_original
from gunicorn.http import wsgi

from app.api.exchange import Exchange
from app.errors import MalformedRequest, RouterError
from app.net.timed_socket import TimedSocket
from app.protocols import problem

_poll = get_original("select", "poll")

_IDLE_GRACE_S = 0.5  # a connection opened or answered less than this ago may have a request on its way
_READING_GRACE_S = 1.0  # a request that began to arrive is expected to go on arriving within this
_LINGER_S = 1.0
_LINGER_BYTES = 1 << 20
_READ_CHUNK = 1 << 16


class State(Enum):
    """What a connection is doing. It is READING while the worker waits for more of a request that has begun."""

    IDLE = auto()
    READING = auto()
    SERVING = auto()


class Connection:
    """The socket as gunicorn's parser and response use it, and what a drain needs to know of it."""

    def __init__(self, sock: Any, stall_timeout_s: float) -> None:
        self.state = State.IDLE
        self._since = self._read_by = time.monotonic()
        self._arrivals: Any = None
        self._stall_timeout_s = stall_timeout_s
        self.parser: Any = None
        """gunicorn's, once it has been needed: it counts the requests."""
        self.proxied: Any = None
        """What a PROXY line said of the client."""
        self._patient = TimedSocket(sock)
        self.sock = self._patient.sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def fileno(self) -> int:
        """The socket's descriptor."""
        descriptor: int = self.sock.fileno()
        return descriptor

    def arrivals(self) -> Any:
        """An io watcher for what the client sends, for one user at a time, who stops it."""
        if self._arrivals is None:
            self._arrivals = gevent.get_hub().loop.io(self.sock.fileno(), 1)
        return self._arrivals

    def close(self) -> None:
        """Close it, for good."""
        if self._arrivals is not None:
            self._arrivals.close()
        try:
            self._patient.close()
        except OSError:
            pass  # the client was faster

    def enter(self, state: State) -> None:
        """It does something else from now on."""
        self.state = state
        self._since = time.monotonic()

    def allow(self, seconds: float) -> None:
        """Let what is read from now on, all together, take so long and no longer."""
        self._read_by = time.monotonic() + seconds

    def at_work(self) -> bool:
        """Whether a request is being served, or is still arriving."""
        if self.state is State.READING:
            return time.monotonic() - self._since < _READING_GRACE_S
        return self.state is State.SERVING

    def may_be_spoken_on(self) -> bool:
        """Whether it is at work, or a request may be on its way."""
        return self.at_work() or (self.state is State.IDLE and time.monotonic() - self._since < _IDLE_GRACE_S)

    def end(self) -> None:
        """End a connection that isn't at work, unless a request has just arrived: that one is read and answered."""
        arrival = _poll()
        try:
            arrival.register(self.sock.fileno(), select.POLLIN)
            if not arrival.poll(0):
                self.sock.shutdown(socket.SHUT_RDWR)  # wakes the reader, which closes
        except (OSError, ValueError):
            pass  # the client was faster

    def first_bytes(self, seconds: float) -> bytes:
        """Wait idly for the first bytes of a request, b"" if the client leaves. Raises TimeoutError."""
        return self._patient.recv(_READ_CHUNK, seconds)

    def recv(self, size: int) -> bytes:
        """The next bytes of a request."""
        self.enter(State.READING)
        left = self._read_by - self._since  # enter() has just looked at the clock
        if left <= 0:
            raise TimeoutError("the request took too long to arrive")
        data = self._patient.recv(size, min(left, self._stall_timeout_s))
        self.enter(State.SERVING)
        return data

    def sendall(self, data: bytes) -> None:
        """Send everything. The socket's own `sendall` would let the time run out although the client reads, slowly."""
        sent = self._send(data)
        while sent < len(data):
            sent += self._send(memoryview(data)[sent:])

    def _send(self, data: bytes | memoryview) -> int:
        """Send some, for as long as the client reads.

        The kernel takes more only when much was read, so a slow reader shows in what it still holds. That is first
        looked at when the time is up, so a client that reads nothing is cut off when it is up for the second time.
        """
        held: int | None = None
        while True:
            try:
                return self._patient.send(data, self._stall_timeout_s)
            except TimeoutError:
                before, held = held, self._unread_by_client()
                if before is not None and held >= before:
                    raise

    def _unread_by_client(self) -> int:
        """Bytes that the kernel holds because the client has not acknowledged them (tcp(7), SIOCOUTQ)."""
        count = array("i", [0])
        fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, count)
        return count[0]

    def reset(self) -> None:
        """Have the close that follows be a reset, where an orderly one would look like the end of the answer."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def linger(self) -> None:
        """Say that nothing more comes, and discard what a client still sends of a request that was refused.

        Closing over unread bytes would reset the connection and with it the answer on its way (RFC 9112 section 9.6).
        """
        discarded = 0
        with gevent.Timeout(_LINGER_S, False):  # type: ignore[arg-type]  # False: end silently
            self.sock.shutdown(socket.SHUT_WR)
            while discarded < _LINGER_BYTES and (data := self._patient.recv(_READ_CHUNK, _LINGER_S)):
                discarded += len(data)

    def answer_malformed(self, status: int, reason: str, detail: str) -> None:
        """Answer what the parser refused. It never became a request, so no application could answer it."""
        code = RouterError.code if status == 500 else MalformedRequest.code
        body = problem.document(reason, status, detail, code)
        exchange = Exchange({})
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: {problem.CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {exchange.request_id}\r\n"
            f"Server-Timing: {exchange.timing()}\r\n\r\n"
        )
        try:
            self.sendall(head.encode() + body)
            self.linger()
        except OSError:
            pass  # the client didn't wait for it


class ErrorStatus:
    """Stands in for the client where gunicorn writes its HTML for a request it refuses, to learn the status."""

    def __init__(self) -> None:
        self._head = b""

    def sendall(self, data: bytes) -> None:
        self._head += data

    def gettimeout(self) -> float:
        return 0.0

    def status(self) -> tuple[int, str]:
        """Status code and phrase; 500 if gunicorn wrote nothing."""
        _, _, line = self._head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        code, _, reason = line.partition(" ")
        return (int(code), reason) if code.isdigit() else (500, "Internal Server Error")


class RequestBody:
    """`wsgi.input`: gunicorn's reader, which sends `100 Continue` before it first waits for the client."""

    def __init__(self, req: Any, connection: Connection, continue_first: bool) -> None:
        self._body = req.body
        self._connection = connection
        self._continue_first = continue_first

    def read(self, size: int | None = None) -> bytes:
        if self._continue_first:
            self._continue_first = False
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data: bytes = self._body.read(size)
        return data

    def finished(self) -> bool:
        """Whether nothing of the body is left to read, so that the next request can follow."""
        reader = self._body.reader
        left = reader.length if hasattr(reader, "length") else getattr(reader, "parser", None)
        return not left and not self._body.failed


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's response, which decides when it sends its head whether the connection will close."""

    def __init__(self, req: Any, sock: Any, cfg: Any, worker_stops: Callable[[], bool]) -> None:
        super().__init__(req, sock, cfg)
        self._worker_stops = worker_stops
        self.request_body: RequestBody

    def ends_with_connection(self) -> bool:
        """Whether nothing but the close of the connection tells a client that this answer is whole."""
        return self.response_length is None and not self.chunked

    def send_headers(self) -> None:
        if not self.headers_sent and not (self.cfg.keepalive and self.request_body.finished()):
            self.force_close()
        if not self.headers_sent and self._worker_stops():
            self.force_close()
        super().send_headers()
