"""Addresses that swallow connections: a SYN to them gets no answer, as from a host that is gone."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def swallowing(port: int, *hosts: str) -> Iterator[None]:
    """Each of these addresses swallows connections to this port: its backlog is full."""
    with ExitStack() as stack:
        for host in hosts:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(0)
            for _ in range(4):  # Linux lets one more than the backlog wait; the next one's SYN gets no answer
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex((host, port))
        yield
