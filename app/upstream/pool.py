"""Idle connections of one worker to one model server, kept for the next request."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from app.config.route_schema import Timeouts
from app.errors import UpstreamBroken
from app.native import monotonic
from app.protocols.calls import BodyStream
from app.upstream.connection import Connection
from app.upstream.dialer import Address
from app.upstream.resolver import Resolver
from app.upstream.response_head import Head
from app.upstream.unread_request import ConnectionClosedUnanswered

MAX_IDLE = 256
MAX_IDLE_S = 30.0
_AGE_JITTER = 0.1
_END_WITHIN_S = 1.0
"""So long the end of a body is waited for whose last event has come."""


class Sender(Protocol):
    """What a pool asks and tells the one who sends a request."""

    def may_repeat(self) -> bool:
        """Whether the request may be sent again, on a new connection: the kept one was closed before it was read."""

    def contacts_server(self) -> None:
        """Take note that the model server is contacted from now on. What went before was the lookup of its name."""


class Response:
    """The head of a response, and its body as it comes. It must be closed."""

    __slots__ = ("_connection", "_pool", "head", "is_whole")

    def __init__(self, head: Head, connection: Connection, pool: "Pool") -> None:
        self.head = head
        self._connection: Connection | None = connection
        self._pool = pool
        self.is_whole = False
        """Whether all that matters of its body has come, though the body may not have ended."""

    def __repr__(self) -> str:
        return f"<Response {self.head.status} {'closed' if self._connection is None else 'open'}>"

    @property
    def first_byte_at(self) -> float | None:
        """When the first byte of the body came, in seconds of time.monotonic(). None: none has come."""
        return None if self._connection is None else self._connection.first_byte_at

    def body(self) -> Iterator[bytes]:
        """Yields the pieces as they come. Raises UpstreamTimeout or UpstreamBroken."""
        assert self._connection is not None
        return self._connection.body()

    def has_more_within(self, seconds: float) -> bool:
        """Whether more of the body is there or comes within this time, or its end."""
        return self._connection is not None and self._connection.has_more_within(seconds)

    def expect_end(self) -> None:
        """Take note that the event that ends a stream has come: now the body ends soon, or raises UpstreamTimeout.

        The rest is read for the connection's sake alone, which can be kept once the body has ended.
        """
        self.is_whole = True
        if self._connection is not None:
            self._connection.deadline = min(self._connection.deadline, monotonic() + _END_WITHIN_S)

    def close(self) -> None:
        """Keep the connection if the response was read to its end, else close it. May be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)


class Pool:
    """At most `MAX_IDLE` idle connections, none idle for longer than `MAX_IDLE_S`. The one used last is used next.

    A connection is not kept when it is older than `connection_max_age_s`, or when the name no longer has the address
    that it is to: the model server may have moved.
    """

    def __init__(self, address: Address, resolver: Resolver) -> None:
        self.address = address
        self._resolver = resolver
        self._idle: deque[Connection] = deque()
        self._hosts: frozenset[str] = frozenset()
        """The addresses of the name, when they were last looked at; empty if they are not known."""
        self._in_use = False
        """Whether a connection was given back since then."""
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._idle)} idle"
        return f"<Pool {self.address} {state}>"

    def send(  # noqa: PLR0913, PLR0917  # all that a request is
        self,
        request: bytes,
        method: str,
        timeouts: Timeouts,
        deadline: float,
        sender: Sender,
        rest: Sequence[bytes | memoryview] = (),
        more: BodyStream | None = None,
    ) -> Response:
        """Send a request, on an idle connection if one is usable. Returns as soon as the head is there.

        `rest`, `more`: see `Connection.exchange`. What is still arriving can't be sent twice, so it always gets a new
        connection: no server has closed that one meanwhile because it was idle.

        `deadline` is in seconds of time.monotonic(). A server may close an idle connection at any moment. If the
        request can't have been processed then and the sender allows it, it is sent on a new connection. Raises an
        UpstreamError.
        """
        connection = self._take() if more is None else None
        if connection is not None:
            sender.contacts_server()
            try:
                return Response(connection.exchange(request, method, timeouts, deadline, rest), connection, self)
            except ConnectionClosedUnanswered as error:
                if not sender.may_repeat():
                    raise UpstreamBroken("it closed a kept connection, and the retry budget is used up") from error
        connection = Connection(self.address, timeouts, deadline, self._resolver, sender.contacts_server)
        # Connections that were made together must not be renewed together.
        age_s = timeouts.connection_max_age_s * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311
        connection.expires_at = monotonic() + age_s
        try:
            return Response(connection.exchange(request, method, timeouts, deadline, rest, more), connection, self)
        except ConnectionClosedUnanswered as error:  # never of a new one
            raise UpstreamBroken("it hung up without a response") from error

    def give_back(self, connection: Connection) -> None:
        """Keep a connection if it may be kept, else close it."""
        self._in_use = True
        now = monotonic()
        if (
            self._closed
            or not connection.may_be_kept()
            or len(self._idle) >= MAX_IDLE
            or self._is_outdated(connection, now)
        ):
            connection.close()
            return
        connection.used_before = True
        connection.idle_since = now
        self._idle.append(connection)

    def prune(self) -> None:
        """Close connections that are outdated or have been idle for too long. To be called every second or so."""
        self._close_idle()
        if self._idle or self._in_use:
            self._in_use = False
            self._hosts = self._resolver.hosts(self.address.host)
            now = monotonic()
            for connection in [one for one in self._idle if self._is_outdated(one, now)]:
                self._idle.remove(connection)
                connection.close()

    def close(self) -> None:
        """Close the idle connections, and keep none from now on."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _is_outdated(self, connection: Connection, now: float) -> bool:
        return now >= connection.expires_at or (bool(self._hosts) and connection.host not in self._hosts)

    def _close_idle(self) -> None:
        oldest = monotonic() - MAX_IDLE_S
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.popleft().close()

    def _take(self) -> Connection | None:
        self._close_idle()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None
