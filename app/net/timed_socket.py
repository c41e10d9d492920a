"""A connected socket with a timeout for every wait, for clients and model servers alike.

gevent's sockets can wait too. They try the system call first, which nearly always fails when there is something to wait
for, and make a `gevent.Timeout` for each wait. Here a wait is one watcher, kept as long as the socket, and one timer;
docs/performance.md says what that saves.
"""

import ssl
from typing import Any

from gevent import get_hub, getcurrent
from gevent.monkey import get_original
from gevent.ssl import SSLSocket

_READABLE, _WRITABLE = 1, 2  # libev's EV_READ and EV_WRITE
_NOT_YET_READABLE = (BlockingIOError, ssl.SSLWantReadError)
_NOT_YET_WRITABLE = (BlockingIOError, ssl.SSLWantWriteError)
_PlainSocket = get_original("socket", "socket")


class TimedSocket:
    """Takes over a socket of gevent's, plain or TLS. One greenlet uses it at a time. It may be closed twice."""

    __slots__ = ("_reads", "_tls", "_writes", "sock")

    def __init__(self, sock: Any) -> None:
        self._tls = isinstance(sock, (ssl.SSLSocket, SSLSocket))
        if not self._tls:  # gevent's has its own watchers, and Python code around each call
            sock = _PlainSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        sock.setblocking(False)
        self.sock = sock
        self._reads: Any = get_hub().loop.io(sock.fileno(), _READABLE)
        self._writes: Any = None

    def recv(self, size: int, timeout_s: float) -> bytes:
        """Returns the next bytes, b"" at the end. Raises TimeoutError if none come within `timeout_s`, or OSError."""
        if not self._tls:  # with TLS, the bytes may have been received and decrypted already
            _wait(self._reads, timeout_s)
        while True:
            try:
                data: bytes = self.sock.recv(size)
            except _NOT_YET_READABLE:
                _wait(self._reads, timeout_s)
            except ssl.SSLWantWriteError:
                self._wait_to_write(timeout_s)
            else:
                return data

    def send(self, data: bytes | memoryview, timeout_s: float) -> int:
        """Send some of the data. Returns how many bytes. Raises TimeoutError or OSError."""
        while True:
            try:
                sent: int = self.sock.send(data)
            except _NOT_YET_WRITABLE:
                sent = 0
            if sent or not data:
                return sent
            self._wait_to_write(timeout_s)  # gevent's TLS sockets return 0 instead of raising

    def close(self) -> None:
        """Close the socket and its watchers."""
        self._reads.close()
        if self._writes is not None:
            self._writes.close()
        self.sock.close()

    def _wait_to_write(self, timeout_s: float) -> None:
        if self._writes is None:
            self._writes = get_hub().loop.io(self.sock.fileno(), _WRITABLE)
        _wait(self._writes, timeout_s)


def _wait(watcher: Any, timeout_s: float) -> None:
    # Watcher and timer wake this greenlet by a switch from the hub. However the wait ends, also by an exception thrown
    # into the greenlet (ClientGone, GreenletExit), both are stopped, even if they are due already. So neither can wake
    # the greenlet out of a later wait.
    hub = get_hub()
    wake = getcurrent().switch
    timer = hub.loop.timer(timeout_s)
    watcher.start(wake, True)
    timer.start(wake, False)
    try:
        ready = hub.switch()
    finally:
        watcher.stop()
        timer.close()
    if not ready:
        raise TimeoutError
