"""The listening sockets of a worker, and how the workers share the connections.

All workers accept from the same sockets, and the kernel wakes them all. Without a rule the first to wake takes what
waits: of 64 clients that connected at once, one of two workers got up to 64, and served them for as long as they
stayed. So a worker that is ahead of another one in connections gives way for a moment. What still waits then, it
accepts: a worker that hangs keeps no client waiting.
"""

import socket
from collections.abc import Callable
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer

from app.net.tcp_keepalive import keep_alive
from app.shared_memory.connection_counts import ConnectionCounts

_MAX_ACCEPTS_PER_CYCLE = 16  # more than may begin, or probes would wait in the kernel
_LEAD = 4  # connections that a worker may be ahead: short ones come and go, and giving way for each would take time
_UNIX = ("localhost", "0")
_WAY_S = 0.001  # for how long to give way: several times what an idle worker takes to wake up


def server_address(listener: Any) -> Any:
    """Returns the address of this listening socket: environs have host and port as SERVER_NAME and SERVER_PORT.

    A Unix socket has neither. gunicorn would take them from the Host, or from a colon in the path, and so a client
    would say itself that it came by the admin listener, which is known by its port. Port 0 is nobody's.
    """
    address = listener.getsockname()
    return address if isinstance(address, tuple) else _UNIX


class _SharedListener(StreamServer):
    """A listening socket that other workers accept from, too."""

    max_accept = _MAX_ACCEPTS_PER_CYCLE

    def __init__(self, listener: Any, handle: Callable[[Any, Any], None], pool: Pool, counts: ConnectionCounts) -> None:
        super().__init__(listener, handle=self._handle_counted, spawn=pool)
        self._handle_connection = handle
        self._counts = counts
        self._gave_way = False

    def do_read(self) -> Any:
        """Accept a connection that waits, or return None. Gives way first if this worker is ahead."""
        if not self._gave_way and self._counts.lead() > _LEAD:
            self.stop_accepting()
            self._timer = self.loop.timer(_WAY_S)  # gevent's own, for after an error: it ends when the server is closed
            self._timer.start(self._accept_what_is_left)
            return None
        self._gave_way = False
        accepted = super().do_read()
        if accepted:
            self._counts.add(1)  # here, for the greenlet that handles it runs only after all that wait are accepted
        return accepted

    def _accept_what_is_left(self) -> None:
        """Accept one connection that no other worker has accepted, and listen again."""
        if self.started:
            self.start_accepting()
            self._gave_way = True
            self._do_read()  # type: ignore[attr-defined]  # gevent's, which also handles errors of accept()
            self._gave_way = False

    def _handle_counted(self, client: Any, address: Any) -> None:
        try:
            self._handle_connection(client, address)
        finally:
            self._counts.add(-1)


def serve(
    listener: Any, handle: Callable[[Any, Any], None], connections: int, counts: ConnectionCounts | None
) -> StreamServer:
    """Accept from one listener. Each has its own pool, so that a full one does not shut the other's probes out.

    `counts` are the connections of all workers, or None if no other one accepts from it.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        keep_alive(listener)  # accepted sockets inherit it: no call for each connection
    listener.setblocking(1)
    pool = Pool(connections)
    if counts is None:
        server = StreamServer(listener, handle=handle, spawn=pool)
    else:
        server = _SharedListener(listener, handle, pool, counts)
    server.start()
    return server


def close(servers: list[StreamServer], counts: ConnectionCounts | None) -> None:
    """Stop accepting, and let the greenlets of what was just accepted register their connections."""
    if counts is not None:
        counts.stop_accepting()
    for server in servers:
        server.close()
    gevent.sleep(0)


def cut_off(servers: list[StreamServer]) -> None:
    """Stop the greenlets that still serve, by a GreenletExit, and wait a second for them."""
    gevent.joinall([gevent.spawn(server.stop, 0) for server in servers])
