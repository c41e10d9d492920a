"""The listening sockets of a worker."""

import socket
from collections.abc import Callable
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer

from app.net.tcp_keepalive import keep_alive

_MAX_ACCEPTS_PER_CYCLE = 16  # more than may begin, or probes would wait in the kernel; few, so that other workers share


def serve(listener: Any, handle: Callable[[Any, Any], None], connections: int, *, shared: bool) -> StreamServer:
    """Accept from one listener. Each has its own pool, so that a full one does not shut the other's probes out.

    `shared`: other workers accept from it, too.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        keep_alive(listener)  # accepted sockets inherit it: no call for each connection
    listener.setblocking(1)
    server = StreamServer(listener, handle=handle, spawn=Pool(connections))
    if shared:
        server.max_accept = _MAX_ACCEPTS_PER_CYCLE
    server.start()
    return server


def close(servers: list[StreamServer]) -> None:
    """Stop accepting, and let the greenlets of what was just accepted register their connections."""
    for server in servers:
        server.close()
    gevent.sleep(0)
