"""One connection to a model server: a request out, its answer in, by HTTP/1.1 (RFC 9112), strictly.

- **Every step has its time**: to connect, to the first byte, between two pieces, and all together.
- **What went wrong is exact.** UpstreamUnreachable: it never saw the request. UpstreamTimeout: the time ran out.
  UpstreamBroken: it hung up or sent no HTTP. ConnectionClosedUnanswered: a connection used before was closed before a
  byte of an answer came, as servers do with idle ones; such a request may be sent again.
- **Nothing is guessed.** A head that isn't exactly as the grammar has it, two lengths that differ, a length beside
  chunks, a bad chunk: broken, because another reader might see other borders than we do.
- A connection that any exception passes through is closed, so that the model server stops working for nobody.
"""

import re
import select
import socket
import ssl
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import gevent
from gevent.monkey import get_original

from app.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from app.routes import Timeouts
from app.upstream.chunks import FIELDS, ChunkReader

_poll = get_original("select", "poll")

_READ_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 16
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")


class Address(NamedTuple):
    """Where a model server listens."""

    host: str
    port: int
    tls: bool = False


class Head(NamedTuple):
    """The head of an answer."""

    status: int
    headers: list[tuple[str, str]]
    """In order, names in lower case."""
    length: int | None
    """Bytes of the body, or None when only its end will tell."""


class ConnectionClosedUnanswered(Exception):
    """A connection that had been used before was closed before a byte of the answer came."""


class Connection:
    """A socket to a model server, for one request after the other."""

    __slots__ = (
        "_arrivals",
        "_buffer",
        "_chunked",
        "_deadline",
        "_keep",
        "_left",
        "_sock",
        "_timeouts",
        "idle_since",
        "used_before",
    )

    def __init__(self, address: Address, timeouts: Timeouts, deadline: float) -> None:
        """Connect. Raises UpstreamUnreachable, or UpstreamTimeout when no time is left to try."""
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
            raise UpstreamTimeout(f"no answer within {timeouts.total_s:g} s in total")
        try:
            with gevent.Timeout(within, TimeoutError):  # the name, every address of it, and TLS: all together
                self._connect(address, within)
        except TimeoutError as error:
            raise UpstreamUnreachable(f"{_name(address)}: not connected within {within:.3g} s") from error
        except (OSError, UnicodeError) as error:  # the latter for a host name that IDNA can't encode
            raise UpstreamUnreachable(f"{_name(address)}: {error}") from error

    def _connect(self, address: Address, within: float) -> None:
        self._sock = socket.create_connection((address.host, address.port), within)
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls:
                self._sock = tls = _tls_context().wrap_socket(
                    self._sock,
                    server_hostname=address.host,
                    do_handshake_on_connect=False,
                    suppress_ragged_eofs=False,  # an end that TLS didn't announce is none: the answer may be cut short
                )
                tls.do_handshake()
            self._arrivals = _poll()
            self._arrivals.register(self._sock.fileno(), select.POLLIN)
        except BaseException:
            self._sock.close()
            raise

    def exchange(self, request: bytes, method: str, timeouts: Timeouts, deadline: float) -> Head:
        """Send a whole request and return the head of the answer; `body` then yields the rest.

        Raises UpstreamTimeout, UpstreamBroken or ConnectionClosedUnanswered, and is closed then.
        """
        self._timeouts = timeouts
        self._deadline = deadline
        try:
            try:
                self._send(request)
            except OSError:
                pass  # it may have answered before it hung up: 413 to a long body
            return self._read_head(method)
        except BaseException:
            self.close()
            raise

    def body(self) -> Iterator[bytes]:
        """The pieces of the body as they come, none of them empty. Raises UpstreamTimeout or UpstreamBroken."""
        try:
            if self._chunked:
                yield from self._chunks()
            else:
                yield from self._plain()
        except BaseException:
            self.close()
            raise

    def may_be_kept(self) -> bool:
        """Whether the answer was read to its end and another request may follow."""
        return self._keep and self._left == 0 and not self._buffer

    def is_quiet(self) -> bool:
        """Whether an idle connection is still good: what is readable now is its end, or an answer to nothing."""
        return not self._arrivals.poll(0)

    def close(self) -> None:
        """Hang up; may be called again."""
        self._keep = False
        self._sock.close()

    def _send(self, request: bytes) -> None:
        self._sock.settimeout(self._within(self._timeouts.idle_s))
        try:
            sent = self._sock.send(request)
            while sent < len(request):
                self._sock.settimeout(self._within(self._timeouts.idle_s))
                sent += self._sock.send(memoryview(request)[sent:])
        except TimeoutError as error:
            self._within(self._timeouts.idle_s)  # if it was the time in total that ran out
            raise UpstreamTimeout(f"the request was not taken within {self._timeouts.idle_s:g} s") from error

    def _within(self, seconds: float) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise UpstreamTimeout(f"not done within {self._timeouts.total_s:g} s in total")
        return min(seconds, left)

    def _receive(self, seconds: float, what: str) -> bytes:
        """More of the answer, b"" at its end."""
        self._sock.settimeout(self._within(seconds))
        try:
            return self._sock.recv(_READ_BYTES)
        except TimeoutError as error:
            self._within(seconds)  # if it was the time in total that ran out
            raise UpstreamTimeout(f"{what} within {seconds:g} s") from error
        except OSError as error:
            raise UpstreamBroken(f"the connection broke: {error}") from error

    def _read_head(self, method: str) -> Head:
        buffer = b""
        unanswered = self.used_before
        while True:
            end = buffer.find(b"\r\n\r\n")
            if (end if end >= 0 else len(buffer) - 3) > _MAX_HEAD_BYTES:  # 3: perhaps of the end, as yet incomplete
                raise UpstreamBroken(f"the head of the answer is longer than {_MAX_HEAD_BYTES} bytes")
            if end >= 0:
                head, buffer = buffer[:end], buffer[end + 4 :]
                status, fields, http_1_0 = _parse_head(head)
                if status >= 200:
                    break
                if status == 101:
                    raise UpstreamBroken("it switched protocols unasked")
                continue  # 100 Continue, 103 Early Hints: the answer is still to come
            try:
                if buffer:
                    data = self._receive(self._timeouts.idle_s, "nothing more of the head of the answer")
                else:
                    data = self._receive(self._timeouts.first_byte_s, "no first byte of an answer")
                if not data:
                    raise UpstreamBroken("it hung up before the head of the answer was complete")
            except UpstreamBroken:
                if unanswered:
                    raise ConnectionClosedUnanswered from None
                raise
            buffer += data
            unanswered = False
        self._buffer = buffer
        return Head(status, fields, self._frame(method, status, fields, http_1_0))

    def _frame(self, method: str, status: int, fields: list[tuple[str, str]], http_1_0: bool) -> int | None:
        """How the body ends (RFC 9112 section 6.3), and whether the connection may be kept; answers the length."""
        lengths, codings, options = set(), [], []
        for name, value in fields:
            if name == "content-length":
                lengths.add(value)
            elif name == "transfer-encoding":
                codings.append(value.lower())
            elif name == "connection":
                options += [option.strip() for option in value.lower().split(",")]
        self._keep = "close" not in options and (not http_1_0 or "keep-alive" in options)
        self._chunked = False
        if method == "HEAD" or status in (204, 304):
            self._left = 0
        elif codings:
            if codings != ["chunked"] or lengths or http_1_0:
                raise UpstreamBroken("the answer's Transfer-Encoding is not just `chunked`, or stands beside a length")
            self._chunked, self._left = True, None
        elif lengths:
            (length, *others) = lengths
            if others or not re.fullmatch(r"\d{1,18}", length, re.ASCII):
                raise UpstreamBroken("the answer's Content-Length is no number, or there are two")
            self._left = int(length)
        else:
            self._keep, self._left = False, None
        return self._left

    def _plain(self) -> Iterator[bytes]:
        """A body of known length, or up to the end of the connection."""
        while self._left != 0:
            data, self._buffer = self._buffer, b""
            data = data or self._receive(self._timeouts.idle_s, "nothing more of the answer")
            if not data:
                if self._left is None:
                    self._left = 0
                    return
                raise UpstreamBroken(f"it hung up {self._left} bytes before the end of the answer")
            if self._left is not None:
                data, self._buffer = data[: self._left], data[self._left :]
                self._left -= len(data)
            yield data

    def _chunks(self) -> Iterator[bytes]:
        """A chunked body: all that has come, in one piece."""
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
            data = self._receive(self._timeouts.idle_s, "nothing more of the answer")
            if not data:
                raise UpstreamBroken("it hung up before the last chunk of the answer")


def _parse_head(head: bytes) -> tuple[int, list[tuple[str, str]], bool]:
    """Status, fields, and whether it is HTTP/1.0."""
    line, _, _ = head.partition(b"\r\n")
    status = _STATUS_LINE.fullmatch(line)
    if status is None:
        raise UpstreamBroken("it did not answer in HTTP/1.1")
    if not FIELDS.fullmatch(head, len(line)):
        raise UpstreamBroken("a header of the answer is malformed")
    fields = []
    for field in head[len(line) + 2 :].decode("latin-1").split("\r\n") if len(head) > len(line) else ():
        name, _, value = field.partition(":")
        fields.append((name.lower(), value.strip(" \t")))
    return int(status[2]), fields, status[1] == b"0"


@cache
def _tls_context() -> ssl.SSLContext:
    """Certificates are verified against the system's authorities, or those of SSL_CERT_FILE."""
    return ssl.create_default_context()


def _name(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
