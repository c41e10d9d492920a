"""Ports that a test gives to a program.

A program listens some time after the test has chosen its port, or never, where the test wants a model server that is
gone. So the ports are below those that Linux gives to whoever asks for any (32768 and above, ip(7)), and each process
of pytest has its own.
"""

import itertools
import os
import random
import socket
from collections.abc import Iterator

_FIRST, _EACH = 10_000, 2_000
_PROCESSES = 11
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
_ports = range(_FIRST + _process * _EACH, _FIRST + (_process + 1) * _EACH)
_begin = random.randrange(_EACH)  # whoever tests on the same machine has other ones, most likely
_next: Iterator[int] = itertools.cycle([*_ports[_begin:], *_ports[:_begin]])


def free_port() -> int:
    """A port nobody listens on, at any address of this host."""
    for port in itertools.islice(_next, _EACH):
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
        return port
    raise OSError(f"all ports from {_ports[0]} to {_ports[-1]} are taken")
