"""The lingering close: after a rejection, what the client still sends of its request is discarded for a while.

Closing over unread bytes resets the connection, and a client that sends its whole request before it reads then loses
the response (RFC 9112 section 9.6). So the sending side is shut, and the rest of the body is read and dropped: what was
declared, with nginx's bounds (lingering_time, lingering_timeout). The request has ended by then. It holds no permit, is
not busy, and a drain waits for it no longer than `LINGER_GRACE_S`.

A lingering connection takes one of the worker's connections from others. So only some of them may linger for long.
"""

import socket
import time

from app.server.client_connection import LINGER_GRACE_S, ClientConnection, State

_TOTAL_S = 30.0
_PAUSE_S = 5.0
_UNDECLARED_BYTES = 1 << 28  # of a chunked body, or of what could not be parsed
_SHORT_BYTES = 1 << 20
_SHARE = 8  # every eighth of the worker's connections may linger for long


class Lingering:
    """The lingering connections of one worker."""

    def __init__(self, worker_connections: int) -> None:
        self._free = max(1, worker_connections // _SHARE)

    def discard(self, connection: ClientConnection, unread: int | None) -> None:
        """Discard what the client still sends. `unread` is the rest of its body, None if the length is unknown.

        Raises OSError, of which TimeoutError is a subclass. The caller closes the connection.
        """
        connection.enter(State.LINGERING)
        connection.sock.shutdown(socket.SHUT_WR)
        if self._free:
            self._free -= 1
            try:
                _discard(connection, _UNDECLARED_BYTES if unread is None else unread, _TOTAL_S, _PAUSE_S)
            finally:
                self._free += 1
        # What follows a declared body may be the next request. The client has most likely read its response by then.
        _discard(connection, _SHORT_BYTES, LINGER_GRACE_S, LINGER_GRACE_S)


def _discard(connection: ClientConnection, size: int, total_s: float, pause_s: float) -> None:
    deadline = time.monotonic() + total_s
    while size > 0:
        data = connection.first_bytes(max(0.0, min(pause_s, deadline - time.monotonic())))
        if not data:
            return
        size -= len(data)
