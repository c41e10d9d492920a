"""One connection to a model server: a request out, its response in, by HTTP/1.1 (RFC 9112), strictly.

- **Every step has a timeout**: connecting, the first byte, each wait between two pieces, and all together.
- **Errors are exact.** UpstreamUnreachable: the model server never saw the request. UpstreamTimeout: a timeout ran out.
  UpstreamBroken: it hung up or sent something other than HTTP. ConnectionClosedUnanswered: a connection that was used
  before was closed before a byte of a response came, as servers do with idle ones; such a request may be sent again.
- **Nothing is guessed.** A head or a chunk that does not match the grammar is broken (response_head.py, chunks.py).
- Any exception closes the connection, so that the model server stops working for nobody.
"""

import select
import socket
import ssl
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import gevent
from gevent.monkey import get_original

from app.config.route_schema import Timeouts
from app.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from app.net.timed_socket import TimedSocket
from app.upstream.chunks import ChunkReader
from app.upstream.response_head import END, Head, parse_head

_poll = get_original("select", "poll")

_READ_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 16


class Address(NamedTuple):
    """Where a model server listens."""

    host: str
    port: int
    tls: bool = False


class ConnectionClosedUnanswered(Exception):
    """A connection that was used before was closed before a byte of the response came."""


class Connection:
    """A socket to a model server, for one request at a time."""

    __slots__ = (
        "_arrivals",
        "_buffer",
        "_chunked",
        "_deadline",
        "_keep",
        "_left",
        "_socket",
        "_timeouts",
        "idle_since",
        "used_before",
    )

    def __init__(self, address: Address, timeouts: Timeouts, deadline: float) -> None:
        """Connect. Raises UpstreamUnreachable, or UpstreamTimeout when no time is left."""
        self._timeouts = timeouts
        self._deadline = deadline
        self._buffer = b""
        self._chunked = False
        self._keep = False
        self._left: int | None = 0
        self.used_before = False
        self.idle_since = 0.0
        within = min(timeouts.connect_s, deadline - time.monotonic())
        if within <= 0:
            raise UpstreamTimeout(f"no response within {timeouts.total_s:g} s in total")
        try:
            with gevent.Timeout(within, TimeoutError):  # name lookup, every address, and TLS together
                self._connect(address, within)
        except TimeoutError as error:
            raise UpstreamUnreachable(f"{_name(address)}: not connected within {within:.3g} s") from error
        except (OSError, UnicodeError) as error:  # the latter for a host name that IDNA can't encode
            raise UpstreamUnreachable(f"{_name(address)}: {error}") from error

    def _connect(self, address: Address, within: float) -> None:
        sock = socket.create_connection((address.host, address.port), within)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls:
                sock = tls = _tls_context().wrap_socket(
                    sock,
                    server_hostname=address.host,
                    do_handshake_on_connect=False,
                    suppress_ragged_eofs=False,  # without TLS's own end, a response may be cut short
                )
                tls.do_handshake()
            self._arrivals = _poll()
            self._arrivals.register(sock.fileno(), select.POLLIN)
            self._socket = TimedSocket(sock)
        except BaseException:
            sock.close()
            raise

    def __repr__(self) -> str:
        descriptor = self._socket.sock.fileno()
        state = "closed" if descriptor < 0 else "idle" if self.may_be_kept() else "in use"
        return f"<Connection {descriptor} {state}{', used before' if self.used_before else ''}>"

    def exchange(self, request: bytes, method: str, timeouts: Timeouts, deadline: float) -> Head:
        """Send a whole request and return the head of the response; `body` then yields the rest.

        Raises UpstreamTimeout, UpstreamBroken or ConnectionClosedUnanswered, and is then closed.
        """
        self._timeouts = timeouts
        self._deadline = deadline
        try:
            try:
                self._send(request)
            except OSError:
                pass  # it may have responded before it hung up: 413 to a long body
            return self._read_head(method)
        except BaseException:
            self.close()
            raise

    def body(self) -> Iterator[bytes]:
        """Yields the pieces of the body as they come, none of them empty. Raises UpstreamTimeout or UpstreamBroken."""
        try:
            if self._chunked:
                yield from self._chunks()
            else:
                yield from self._plain()
        except BaseException:
            self.close()
            raise

    def whole(self) -> bytes:
        """Returns the whole body. Raises UpstreamTimeout or UpstreamBroken."""
        return b"".join(self.body())

    def may_be_kept(self) -> bool:
        """Whether the response was read to its end and another request may follow."""
        return self._keep and self._left == 0 and not self._buffer

    def is_quiet(self) -> bool:
        """Whether an idle connection is usable: what is readable now is its end, or belongs to no request."""
        return not self._arrivals.poll(0)

    def close(self) -> None:
        """Close the connection. May be called again."""
        self._keep = False
        self._socket.close()

    def _send(self, request: bytes) -> None:
        sent = self._send_some(request)
        while sent < len(request):
            sent += self._send_some(memoryview(request)[sent:])

    def _send_some(self, data: bytes | memoryview) -> int:
        within = self._within(self._timeouts.idle_s)
        try:
            return self._socket.send(data, within)
        except TimeoutError as error:
            raise self._timed_out("the request was not taken", self._timeouts.idle_s, within) from error

    def _receive(self, seconds: float, what: str) -> bytes:
        """Returns more of the response, b"" at its end."""
        within = self._within(seconds)
        try:
            return self._socket.recv(_READ_BYTES, within)
        except TimeoutError as error:
            raise self._timed_out(what, seconds, within) from error
        except OSError as error:
            raise UpstreamBroken(f"the connection broke: {error}") from error

    def _within(self, seconds: float) -> float:
        """Returns how much of these seconds the total timeout leaves."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._timed_out("", seconds, left)
        return min(seconds, left)

    def _timed_out(self, what: str, seconds: float, within: float) -> UpstreamTimeout:
        if within < seconds:
            return UpstreamTimeout(f"not done within {self._timeouts.total_s:g} s in total")
        return UpstreamTimeout(f"{what} within {seconds:g} s")

    def _read_head(self, method: str) -> Head:
        buffer = b""
        unanswered = self.used_before
        while True:
            try:
                buffer += self._more_of_head(begun=bool(buffer))
            except UpstreamBroken:
                if unanswered:
                    raise ConnectionClosedUnanswered from None
                raise
            unanswered = False
            end = buffer.find(END)
            while 0 <= end <= _MAX_HEAD_BYTES:
                head = parse_head(buffer[:end], method)
                buffer = buffer[end + len(END) :]
                if head.status >= 200:
                    self._buffer, self._left, self._chunked, self._keep = buffer, head.length, head.chunked, head.keep
                    return head
                if head.status == 101:
                    raise UpstreamBroken("it switched protocols without a request to do so")
                end = buffer.find(END)  # after 100 Continue or 103 Early Hints the response is still to come
            if end >= 0 or len(buffer) - len(END) >= _MAX_HEAD_BYTES:
                raise UpstreamBroken(f"the head of the response is longer than {_MAX_HEAD_BYTES} bytes")

    def _more_of_head(self, *, begun: bool) -> bytes:
        if begun:
            data = self._receive(self._timeouts.idle_s, "nothing more of the head of the response")
        else:
            data = self._receive(self._timeouts.first_byte_s, "no first byte of a response")
        if not data:
            raise UpstreamBroken("it hung up before the head of the response was complete")
        return data

    def _plain(self) -> Iterator[bytes]:
        """Yields a body of known length, or one up to the end of the connection."""
        while self._left != 0:
            data, self._buffer = self._buffer, b""
            data = data or self._receive(self._timeouts.idle_s, "nothing more of the response")
            if not data:
                if self._left is None:
                    self._left = 0
                    return
                raise UpstreamBroken(f"it hung up {self._left} bytes before the end of the response")
            if self._left is not None:
                data, self._buffer = data[: self._left], data[self._left :]
                self._left -= len(data)
            yield data

    def _chunks(self) -> Iterator[bytes]:
        """Yields a chunked body: all that has arrived, in one piece."""
        reader = ChunkReader()
        data, self._buffer = self._buffer, b""
        while True:
            content = reader.feed(data)
            if reader.ended:
                self._left, self._buffer = 0, reader.rest
            if content:
                yield content
            if reader.ended:
                return
            data = self._receive(self._timeouts.idle_s, "nothing more of the response")
            if not data:
                raise UpstreamBroken("it hung up before the last chunk of the response")


@cache
def _tls_context() -> ssl.SSLContext:
    """Certificates are verified against the system's authorities, or those of SSL_CERT_FILE."""
    context = ssl.create_default_context()
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # set by Python before 3.11.4; see suppress_ragged_eofs above
    return context


def _name(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
