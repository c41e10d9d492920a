"""Whether a request whose connection ended without a response can be sent again (RFC 9110 section 9.2.2).

A safe request can. Any other can if the server has not read it. TCP tells that in two ways:

- **Nothing of it is acknowledged**: the connection was closed before the request came, as servers do with idle ones,
  and the server's kernel discards it. A server that crashes on a request has acknowledged it, because its FIN
  acknowledges all that came before. (Its reset does not, and Linux delays acknowledgements by 40 ms. So a server that
  reads a request and resets the connection within that time can't be told apart.)
- **A reset soon after sending began**: a kernel sends it, also after a FIN, when a connection is closed with something
  unread. A later one may come from a server, or a proxy before it, that gave up its work. With TLS it shows nothing:
  this side's alert about the missing end of TLS is answered by a reset, whatever was read before.
"""

import select
from typing import Any

import gevent

from app.native import monotonic
from app.net.timed_socket import TimedSocket

_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


class ConnectionClosedUnanswered(Exception):
    """A connection that was used before was closed before a byte of the response came. The request may be repeated."""


def may_be_repeated(method: str, sent: int, sock: TimedSocket, arrivals: Any, resets_until: float) -> bool:
    """Whether a request of this method can be sent again, of which `sent` bytes went to this socket.

    `arrivals` polls the socket. A reset counts up to the time `resets_until`, in seconds of time.monotonic().
    """
    if method in _SAFE_METHODS or sock.unacknowledged() >= sent:
        return True
    while monotonic() <= resets_until:
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in arrivals.poll(0)):
            return True
        gevent.sleep(0.001)
    return False
