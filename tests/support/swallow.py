"""Addresses that swallow connections: a SYN to them gets no answer, as from a host that is gone."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.support.router import until

_UNACKED = 24
"""Where tcpi_unacked is in Linux' struct tcp_info: of a listener, how many connections wait to be accepted."""


@contextmanager
def swallowing(port: int, *hosts: str) -> Iterator[None]:
    """Each of these addresses swallows connections to this port: its backlog is full."""
    with ExitStack() as stack:
        for host in hosts:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(0)  # Linux lets one more than the backlog wait
            stack.enter_context(socket.create_connection((host, port)))
            until(lambda: _waiting(listener), f"the backlog of {host} is full")
        yield


def _waiting(listener: socket.socket) -> int:
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
    return int(struct.unpack_from("=I", info, _UNACKED)[0])
