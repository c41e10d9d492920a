"""Idle connections of one worker to one model server, kept for the next request."""

import time
from collections import deque
from collections.abc import Callable, Iterator

from app.config.route_schema import Timeouts
from app.errors import UpstreamBroken
from app.upstream.connection import Address, Connection, ConnectionClosedUnanswered
from app.upstream.response_head import Head

MAX_IDLE = 256
MAX_IDLE_S = 30.0


class Response:
    """The head of a response, and its body as it comes. It must be closed."""

    __slots__ = ("_connection", "_pool", "head")

    def __init__(self, head: Head, connection: Connection, pool: "Pool") -> None:
        self.head = head
        self._connection: Connection | None = connection
        self._pool = pool

    def __repr__(self) -> str:
        return f"<Response {self.head.status} {'closed' if self._connection is None else 'open'}>"

    def body(self) -> Iterator[bytes]:
        """Yields the pieces as they come. Raises UpstreamTimeout or UpstreamBroken."""
        assert self._connection is not None
        return self._connection.body()

    def whole(self) -> bytes:
        """Returns the whole body and closes the response. Raises UpstreamTimeout or UpstreamBroken."""
        assert self._connection is not None
        try:
            return self._connection.whole()
        finally:
            self.close()

    def close(self) -> None:
        """Keep the connection if the response was read to its end, else close it. May be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)


class Pool:
    """At most `MAX_IDLE` idle connections, none idle for longer than `MAX_IDLE_S`. The one used last is used next."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: deque[Connection] = deque()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._idle)} idle"
        return f"<Pool {self._address.host}:{self._address.port} {state}>"

    def send(
        self, request: bytes, method: str, timeouts: Timeouts, deadline: float, on_stale: Callable[[], object]
    ) -> Response:
        """Send a request, on an idle connection if one is usable. Returns as soon as the head is there.

        `deadline` is in seconds of time.monotonic(). A server may close an idle connection at any moment: then
        `on_stale` is called, and the request is sent on a new one. Raises an UpstreamError.
        """
        connection = self._take()
        if connection is not None:
            try:
                return Response(connection.exchange(request, method, timeouts, deadline), connection, self)
            except ConnectionClosedUnanswered:
                on_stale()
        connection = Connection(self._address, timeouts, deadline)
        try:
            return Response(connection.exchange(request, method, timeouts, deadline), connection, self)
        except ConnectionClosedUnanswered as error:  # never of a new one
            raise UpstreamBroken("it hung up without a response") from error

    def give_back(self, connection: Connection) -> None:
        """Keep a connection if it may be kept, else close it."""
        if self._closed or not connection.may_be_kept() or len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        connection.used_before = True
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def prune(self) -> None:
        """Close connections that have been idle for too long."""
        oldest = time.monotonic() - MAX_IDLE_S
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.popleft().close()

    def close(self) -> None:
        """Close the idle connections, and keep none from now on."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Connection | None:
        self.prune()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None
