"""TCP keep-alive, the same towards clients and model servers.

A model may be silent for longer than a NAT or a load balancer remembers a connection: some drop one on which nothing
was sent for 350 s. A probe a minute keeps it, and finds a host that is gone. RFC 1122 section 4.2.3.6 leaves keep-alive
to the application, and lets no single lost probe end a connection. So it ends after three: 2 minutes without a sign of
the other side.
"""

import socket
from typing import Any

_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),  # seconds of silence before the first probe
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20),  # seconds between two probes without a response
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def keep_alive(sock: Any) -> None:
    """Switch keep-alive on. What a listening socket accepts inherits it. Raises OSError."""
    for option in _OPTIONS:
        sock.setsockopt(*option)
