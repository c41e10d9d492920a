"""One connection to a model server: a request out, its response in, by HTTP/1.1 (RFC 9112), strictly.

- **Every step has a timeout**: connecting, the first byte, each wait between two pieces, and all together.
- **The first byte is one of the body.** Servers that stream send the head before the model has produced anything, so
  the head says nothing of the model. `first_byte_s` lasts from the end of the request to the first byte of the body,
  and `idle_s` begins after it.
- **The response is read while the request is sent** (RFC 9112 section 9.5), also while it is still arriving from the
  client (`BodyStream`). After an early response with an error, the rest of the request is not sent.
- **Errors are exact.** UpstreamUnreachable: the model server never saw the request. UpstreamTimeout: a timeout ran out.
  UpstreamBroken: it hung up or sent something other than HTTP. ConnectionClosedUnanswered: a connection that was used
  before was closed before a byte of a response came, and the request may be sent again (unread_request.py).
- **Nothing is guessed.** A head or a chunk that does not match the grammar is broken (response_head.py, chunks.py).
- Any exception closes the connection, so that the model server stops working for nobody.
"""

import select
from collections.abc import Callable, Iterator, Sequence

from gevent.monkey import get_original

from app.config.route_schema import Timeouts
from app.errors import UpstreamBroken, UpstreamTimeout
from app.native import monotonic
from app.protocols.calls import BodyStream
from app.upstream.chunks import ChunkReader
from app.upstream.dialer import Address, dial
from app.upstream.resolver import Resolver
from app.upstream.response_head import Head, HeadReader
from app.upstream.unread_request import ConnectionClosedUnanswered, may_be_repeated

_poll = get_original("select", "poll")

_READ_BYTES = 1 << 16
_SEND_BYTES = 1 << 18  # at most by one call: between two calls it is seen whether a response is there
_RACE_S = 0.01
"""How long after sending began a reset shows that the server closed the connection meanwhile, without reading."""


class Connection:
    """A socket to a model server, for one request at a time."""

    __slots__ = (
        "_arrivals",
        "_buffer",
        "_chunked",
        "_is_error",
        "_keep",
        "_left",
        "_more",
        "_race_until",
        "_sent",
        "_sent_at",
        "_socket",
        "_timeouts",
        "_tls",
        "_unsent",
        "deadline",
        "expires_at",
        "first_byte_at",
        "host",
        "idle_since",
        "used_before",
    )

    def __init__(
        self,
        address: Address,
        timeouts: Timeouts,
        deadline: float,
        resolver: Resolver,
        on_resolved: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect, as `dial` does. Raises UpstreamUnreachable, or UpstreamTimeout when no time is left."""
        self._timeouts, self.deadline, self._buffer = timeouts, deadline, b""
        self._chunked = self._is_error = self._keep = False
        self._left: int | None = 0
        self._more: BodyStream | None = None
        self._sent, self._sent_at, self._race_until = 0, 0.0, 0.0
        self._tls = address.tls
        self._unsent: list[memoryview] = []  # the last part first
        self.first_byte_at: float | None = None
        """When the first byte of the body came, in seconds of time.monotonic(). None: none has come."""
        self.used_before = False
        self.idle_since = self.expires_at = 0.0
        within = min(timeouts.connect_s, deadline - monotonic())
        if within <= 0:
            raise UpstreamTimeout(f"no response within {timeouts.total_s:g} s in total")
        self._socket, self.host = dial(address, resolver, within, on_resolved)  # `host`: the other side's IP address
        self._arrivals = _poll()
        self._arrivals.register(self._socket.sock.fileno(), select.POLLIN)

    def __repr__(self) -> str:
        descriptor = self._socket.sock.fileno()
        state = "closed" if descriptor < 0 else "idle" if self.may_be_kept() else "in use"
        return f"<Connection {descriptor} {state}{', used before' if self.used_before else ''}>"

    def exchange(  # noqa: PLR0913, PLR0917  # all that a request is
        self,
        request: bytes,
        method: str,
        timeouts: Timeouts,
        deadline: float,
        rest: Sequence[bytes | memoryview] = (),
        more: BodyStream | None = None,
    ) -> Head:
        """Send a request and return the head of the response; `body` then yields the rest.

        `rest` are the parts of a long request that follow `request`: joining them would take as much memory again.
        `more` is still arriving. Raises an UpstreamError, ConnectionClosedUnanswered, or what `more` raises.
        """
        self._timeouts, self.deadline = timeouts, deadline
        self._more = more
        self.first_byte_at = None
        self._sent_at = monotonic()
        self._race_until = 0.0 if self._tls else self._sent_at + _RACE_S
        try:
            if self._sent_at >= deadline:
                raise self._timed_out("", 0, in_total=True)
            try:
                sent = self._socket.send_now(request[:_SEND_BYTES])
                if sent < len(request) or rest:
                    parts = [memoryview(part) for part in (*reversed(rest), request)]
                    parts[-1] = parts[-1][sent:]
                    self._unsent = [part for part in parts if len(part)]
            except OSError:
                sent = 0  # it may have responded before it hung up: 408, or 413 to a long body
                self._more = None
            self._sent = sent
            return self._read_head(method)
        except BaseException:
            self.close()
            raise

    def body(self) -> Iterator[bytes]:
        """Yields the pieces of the body as they come, none of them empty. Raises UpstreamTimeout or UpstreamBroken."""
        sent_at = self._sent_at
        try:
            yield from self._chunks() if self._chunked else self._plain()
        except BaseException as error:
            # If it was dropped at its last byte, the connection is kept by now, or serves another request.
            if not (isinstance(error, GeneratorExit) and (self._sent_at != sent_at or self.may_be_kept())):
                self.close()
            raise

    def has_more_within(self, seconds: float) -> bool:
        """Whether more of the response is there or comes within this time, or its end. Nothing is read."""
        return self._left == 0 or bool(self._buffer) or self._socket.is_readable_within(seconds)

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

    def _send_rest(self) -> bytes | None:
        """Send what is left of the request. Returns what comes of the response meanwhile, or None once all is sent."""
        idle_s = self._timeouts.idle_s
        while self._unsent or self._more is not None:
            left = self.deadline - monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                if not self._unsent:
                    if (data := self._get_more(left)) is not None:
                        return data
                    continue
                sent = self._socket.send_now(self._unsent[-1][:_SEND_BYTES])
                self._sent += sent
                part = self._unsent.pop()[sent:]
                if len(part):
                    self._unsent.append(part)
                data = self._socket.recv_now(_READ_BYTES)
                if data is None and not sent:
                    self._socket.wait_for_progress(min(idle_s, left))
            except TimeoutError as error:
                raise self._timed_out("the request was not taken", idle_s, in_total=left < idle_s) from error
            except OSError:  # as in `exchange`
                self._unsent, self._more = [], None
                break
            if data is not None:
                return data
        self._sent_at = monotonic()
        return None

    def _get_more(self, within_s: float) -> bytes | None:
        """Get the next piece of a body that is still arriving. Returns what comes of the response meanwhile."""
        data = self._socket.recv_now(_READ_BYTES)
        if data is None and self._more is not None:
            piece = self._more.receive(self._socket.sock.fileno(), within_s)
            if piece:
                self._unsent.append(memoryview(piece))
            if self._more.ended_at:  # known with the last piece: the response to it is not an early one
                self._more = None
        return data

    def _receive(self, what: str, *, first: bool = False, begun: bool = False) -> bytes:
        """Returns more of the response, b"" at its end.

        `first`: it waits for the first byte of the body, within `first_byte_s`. `begun`: and within `idle_s`, because
        something has come before.
        """
        if (self._unsent or self._more is not None) and (early := self._send_rest()) is not None:
            return early
        now = monotonic()
        seconds = limit = self._timeouts.idle_s
        if first and (not begun or self._sent_at + self._timeouts.first_byte_s < now + limit):
            seconds = self._timeouts.first_byte_s
            limit = self._sent_at + seconds - now
        left = self.deadline - now
        try:
            if limit <= 0 or left <= 0:
                raise TimeoutError
            return self._socket.recv(_READ_BYTES, min(limit, left))
        except TimeoutError as error:
            raise self._timed_out(what, seconds, in_total=left < limit) from error
        except OSError as error:
            raise UpstreamBroken(f"the connection broke: {error}") from error

    def _timed_out(self, what: str, seconds: float, *, in_total: bool) -> UpstreamTimeout:
        total = f"not done within {self._timeouts.total_s:g} s in total"
        return UpstreamTimeout(total if in_total else f"{what} within {seconds:g} s")

    def _read_head(self, method: str) -> Head:
        reader = HeadReader(method)
        head = None
        while head is None:
            try:
                head = reader.feed(self._more_of_head(reader))
            except UpstreamBroken as error:
                if self.used_before and not reader.heard and self._may_be_repeated(method):
                    raise ConnectionClosedUnanswered from error
                raise
        self._buffer, self._left, self._chunked, self._keep = reader.rest, head.length, head.chunked, head.keep
        self._is_error = head.status >= 400
        if self._unsent or self._more is not None:
            # The server may not read the rest, so no other request can follow on this connection. After an error or a
            # redirection nothing more is sent. A server that has accepted the request may read and respond in turn.
            self._keep = False
            if head.status >= 300:
                self._unsent, self._more = [], None
                self._sent_at = monotonic()
        return head

    def _may_be_repeated(self, method: str) -> bool:
        return may_be_repeated(method, self._sent, self._socket, self._arrivals, self._race_until)

    def _more_of_head(self, reader: HeadReader) -> bytes:
        what = "nothing more of the head of the" if reader.begun else "no first byte of a"
        data = self._receive(f"{what} response", first=True, begun=reader.begun)
        if not data:
            raise UpstreamBroken("it hung up before the head of the response was complete")
        return data

    def _plain(self) -> Iterator[bytes]:
        """Yields a body of known length, or one up to the end of the connection."""
        while self._left != 0:
            data, self._buffer = self._buffer, b""
            data = data or self._more_of_body()
            if not data:
                if self._left is None:
                    self._left = 0
                    return
                raise UpstreamBroken(f"it hung up {self._left} bytes before the end of the response")
            if self.first_byte_at is None:
                self.first_byte_at = monotonic()
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
                if self.first_byte_at is None:
                    self.first_byte_at = monotonic()
                yield content
            if reader.ended:
                return
            data = self._more_of_body()
            if not data:
                raise UpstreamBroken("it hung up before the last chunk of the response")

    def _more_of_body(self) -> bytes:
        if self.first_byte_at is None:
            # Nothing has to be generated for the body of an error: `idle_s` holds for it too.
            return self._receive("no first byte of the response's body", first=True, begun=self._is_error)
        return self._receive("nothing more of the response")
