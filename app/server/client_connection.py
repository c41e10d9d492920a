"""A client's connection: its state, and gunicorn's reading and writing with a few differences.

- **Slow clients.** A client that for STALL_TIMEOUT_S sends no more of its request, or takes no more of its response, is
  cut off: `recv` and `sendall` raise TimeoutError. Any progress starts that time again (for readers, see `_send`). All
  that is read must also arrive by the read deadline, so a request that trickles in ends, too.
- **Unread bodies.** A body that the application did not read (413) is not waited for. The response says `Connection:
  close`, and what still arrives is discarded for a while (`lingering.py`), so that the client can read the response.
- **The end of TLS** is announced when a connection is closed in order, so that a response which goes to the end of the
  connection is known to be whole (RFC 8446 section 6.1). `reset` announces nothing.
- **`Expect: 100-continue`** is answered when the application first reads, so a rejected body need not be sent.
"""

import select
import socket
import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from gevent import get_hub
from gevent.monkey import get_original
from gunicorn.http import wsgi

from app.native import monotonic
from app.net.timed_socket import TimedSocket
from app.server.chunked_body import ChunkedBody

_poll = get_original("select", "poll")

IDLE_GRACE_S = 0.5
"""A connection opened or answered less than this ago may have a request on its way."""
_READING_GRACE_S = 1.0  # a request that began to arrive is expected to go on arriving within this
LINGER_GRACE_S = 1.0
"""How long a drain waits for a client to read the rejection of a request that it is still sending."""
_READ_CHUNK = 1 << 16

Facts = dict[str, str]
NO_FACTS: Facts = {}


class State(Enum):
    """What a connection does.

    It is READING while the worker waits for the rest of a request that has begun, and LINGERING while the rest of a
    rejected one is discarded.
    """

    IDLE = auto()
    READING = auto()
    SERVING = auto()
    LINGERING = auto()


_GRACE_S = {State.IDLE: IDLE_GRACE_S, State.LINGERING: LINGER_GRACE_S}


class ClientConnection:
    """The socket as gunicorn's parser and response use it, with the state that a drain looks at."""

    def __init__(self, sock: Any, stall_timeout_s: float, facts: Facts = NO_FACTS) -> None:
        self.state = State.IDLE
        self.facts = facts
        """What the environ of each request says of the connection, beside its addresses."""
        self._ends_in_order = True
        self._since = self._read_by = monotonic()
        self._arrivals: Any = None
        self._stall_timeout_s = stall_timeout_s
        self.parser: Any = None
        """gunicorn's parser, once it was needed: it counts the requests."""
        self.proxied: Any = None
        """What a PROXY line said of the client."""
        self._socket = TimedSocket(sock)
        self.sock = self._socket.sock

    def __repr__(self) -> str:
        return f"<ClientConnection {self.state.name} for {monotonic() - self._since:.3f} s>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def fileno(self) -> int:
        """Returns the socket's descriptor."""
        descriptor: int = self.sock.fileno()
        return descriptor

    def arrivals(self) -> Any:
        """Returns an io watcher for what the client sends. It has one user at a time, who stops it."""
        if self._arrivals is None:
            self._arrivals = get_hub().loop.io(self.sock.fileno(), 1)
        return self._arrivals

    def close(self) -> None:
        """Close the connection."""
        if self._arrivals is not None:
            self._arrivals.close()
        if self._ends_in_order:
            self._socket.end_tls()
        try:
            self._socket.close()
        except OSError:
            pass  # the client closed first

    def enter(self, state: State) -> None:
        """Change the state."""
        self.state = state
        self._since = monotonic()

    def set_read_deadline(self, seconds: float) -> None:
        """Limit how long everything that is read from now on may take, all together."""
        self._read_by = monotonic() + seconds

    def postpone_read_deadline(self, seconds: float) -> None:
        """Give the client so much longer: nothing was read from it in that time."""
        self._read_by += seconds

    def is_readable_before(self, other: int, within_s: float) -> bool:
        """Wait for the client to send more, or for descriptor `other` to be readable.

        Returns whether it is the client; False too if `within_s` is over. Raises TimeoutError, as `recv` does.
        """
        limit = self._start_reading()
        try:
            found = self._socket.is_readable_before(other, min(limit, within_s))
        except TimeoutError:
            if limit <= within_s:
                raise
            found = False
        self.enter(State.SERVING)
        return found

    def is_busy(self) -> bool:
        """Whether a request is being served, or is still arriving."""
        if self.state is State.READING:
            return monotonic() - self._since < _READING_GRACE_S
        return self.state is State.SERVING

    def expects_request(self) -> bool:
        """Whether it is busy, or a request may be on its way, or a response to be read."""
        return self.is_busy() or monotonic() - self._since < _GRACE_S.get(self.state, 0.0)

    def has_request(self) -> bool:
        """Whether a request is being served, or has begun to arrive, however long ago the last of it came."""
        return self.state in (State.READING, State.SERVING)

    def end(self) -> None:
        """End a connection without a request, unless one has just arrived: that one is still served."""
        if self.has_request():
            return  # more of it may come as long as the worker waits for others; then the client is told
        arrival = _poll()
        try:
            arrival.register(self.sock.fileno(), select.POLLIN)
            if not arrival.poll(0):
                self.sock.shutdown(socket.SHUT_RDWR)  # wakes the reader, which then closes
        except (OSError, ValueError):
            pass  # the client closed first

    def first_bytes(self, seconds: float) -> bytes:
        """Wait for the first bytes of a request. Returns b"" if the client leaves. Raises TimeoutError."""
        return self._socket.recv(_READ_CHUNK, seconds)

    def recv(self, size: int) -> bytes:
        """Returns the next bytes of a request. Raises TimeoutError or OSError."""
        data = self._socket.recv(size, self._start_reading())
        self.enter(State.SERVING)
        return data

    def recv_into(self, buffer: memoryview) -> int:
        """Put the next bytes of a request into a buffer. Returns how many. Raises TimeoutError or OSError."""
        count = self._socket.recv_into(buffer, self._start_reading())
        self.enter(State.SERVING)
        return count

    def _start_reading(self) -> float:
        """Returns how many seconds the next bytes may take to arrive. Raises TimeoutError."""
        self.enter(State.READING)
        left = self._read_by - self._since  # enter() has just read the clock
        if left <= 0:
            raise TimeoutError("the request took too long to arrive")
        return min(left, self._stall_timeout_s)

    def sendall(self, data: bytes) -> None:
        """Send everything. The socket's own `sendall` would time out while the client still reads, slowly."""
        sent = self._send(data)
        while sent < len(data):
            sent += self._send(memoryview(data)[sent:])

    def _send(self, data: bytes | memoryview) -> int:
        """Send some of the data, as long as the client reads.

        The kernel accepts more only after much was read, so a slow reader shows in the bytes that the kernel still
        holds. They are compared from one timeout to the next: a client that reads nothing is cut off at the second.
        """
        held: int | None = None
        while True:
            try:
                return self._socket.send(data, self._stall_timeout_s)
            except TimeoutError:
                before, held = held, self._socket.unacknowledged()
                if before is not None and held >= before:
                    raise

    def reset(self) -> None:
        """Make the next close a reset: an orderly one would look like the end of the response."""
        self._ends_in_order = False
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class RequestBody:
    """`wsgi.input`: gunicorn's reader, but `100 Continue` is sent before the first read."""

    def __init__(self, req: Any, connection: ClientConnection, continue_first: bool) -> None:
        self._body = req.body
        self._unreader = req.unreader
        self._connection = connection
        self._continue_first = continue_first

    def read(self, size: int | None = None) -> bytes:
        if self._continue_first:
            self._continue_first = False
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data: bytes = self._body.read(size)
        return data

    def read1(self, size: int) -> bytes:
        """Returns some of the body, up to `size` bytes, after at most one wait; b"" at its end, or at an early one.

        Raises what `read` raises.
        """
        if self._continue_first:
            self.read(0)
        reader = self._body.reader
        try:
            if isinstance(reader, ChunkedBody):
                return reader.read1(size)
            wanted = min(size, reader.length)
            data: bytes = self._unreader.read(None, read_ahead=wanted) if wanted else b""
        except Exception:
            self._body.failed = True
            raise
        if len(data) > wanted:
            self._unreader.unread(data[wanted:])
            data = data[:wanted]
        reader.length -= len(data)
        return data

    def is_ready_before(self, other: int, within_s: float) -> bool:
        """Whether some of the body, or its end, has come, or comes before descriptor `other` is readable.

        False too if `within_s` is over. Raises TimeoutError.
        """
        reader = self._body.reader
        held = reader.holds_input() if isinstance(reader, ChunkedBody) else not reader.length
        if held or self._unreader.buf.getbuffer().nbytes:
            return True
        return self._connection.is_readable_before(other, within_s)

    def finished(self) -> bool:
        """Whether the body was read to its end, so that the next request can follow."""
        reader = self._body.reader
        done = reader.ended if isinstance(reader, ChunkedBody) else not reader.length
        return done and not self._body.failed

    def unread(self) -> int | None:
        """Returns how much of the body has yet to be received, None if the client does not say."""
        reader = self._body.reader
        if isinstance(reader, ChunkedBody):
            return None
        length: int = reader.length
        return max(0, length - len(self._unreader.buf.getvalue()))


class Response(wsgi.Response):
    """gunicorn's response. It decides whether the connection will close when it sends its head."""

    def __init__(self, req: Any, sock: Any, cfg: Any, worker_stops: Callable[[], bool]) -> None:
        super().__init__(req, sock, cfg)
        self._worker_stops = worker_stops
        self.request_body: RequestBody

    def send(self, application: Callable[[Any, Any], Any], environ: dict[str, Any]) -> None:
        """Call the application and write its response."""
        chunks = application(environ, self.start_response)
        try:
            for chunk in chunks:
                self.write(chunk)
            self.close()
        finally:
            if hasattr(chunks, "close"):
                chunks.close()

    def ends_with_connection(self) -> bool:
        """Whether only the close of the connection tells the client that the response is complete."""
        return self.response_length is None and not self.chunked

    def send_headers(self) -> None:
        if not self.headers_sent and not (self.cfg.keepalive and self.request_body.finished()):
            self.force_close()
        if not self.headers_sent and self._worker_stops():
            self.force_close()
        super().send_headers()
