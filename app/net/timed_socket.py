"""A connected socket whose every wait has its time, for clients and model servers alike.

gevent's sockets can wait too. They try the system call first, which is in vain nearly every time there is something to
wait for, and make a `gevent.Timeout` for each wait. Here a wait is one watcher, kept as long as the socket, and one
timer; docs/performance.md says what that saves.
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
    """Takes over a socket of gevent's, plain or TLS; used by one greenlet at a time. It may be `close`d twice."""

    __slots__ = ("_reads", "_tls", "_writes", "sock")

    def __init__(self, sock: Any) -> None:
        self._tls = isinstance(sock, (ssl.SSLSocket, SSLSocket))
        if not self._tls:  # gevent's has watchers of its own, and Python around each call
            sock = _PlainSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        sock.setblocking(False)
        self.sock = sock
        self._reads: Any = get_hub().loop.io(sock.fileno(), _READABLE)
        self._writes: Any = None

    def recv(self, size: int, seconds: float) -> bytes:
        """The next bytes, b"" at the end. Raises TimeoutError when there are none within `seconds`, or OSError."""
        if not self._tls:  # with TLS, what came may have been read and decrypted already
            _wait(self._reads, seconds)
        while True:
            try:
                data: bytes = self.sock.recv(size)
            except _NOT_YET_READABLE:
                _wait(self._reads, seconds)
            except ssl.SSLWantWriteError:
                self._wait_to_write(seconds)
            else:
                return data

    def send(self, data: bytes | memoryview, seconds: float) -> int:
        """Send some of the data; answers how much. Raises TimeoutError or OSError."""
        while True:
            try:
                sent: int = self.sock.send(data)
            except _NOT_YET_WRITABLE:
                sent = 0
            if sent or not data:
                return sent
            self._wait_to_write(seconds)  # gevent's TLS sockets answer 0 instead of raising

    def close(self) -> None:
        """Close it, with what waits for it."""
        self._reads.close()
        if self._writes is not None:
            self._writes.close()
        self.sock.close()

    def _wait_to_write(self, seconds: float) -> None:
        if self._writes is None:
            self._writes = get_hub().loop.io(self.sock.fileno(), _WRITABLE)
        _wait(self._writes, seconds)


def _wait(watcher: Any, seconds: float) -> None:
    # Both wake this greenlet by a switch from the hub. However the wait ends, be it by what is thrown into the greenlet
    # (ClientGone, GreenletExit), both are stopped, even if they are due already. So nothing is left that could wake the
    # greenlet out of a later wait.
    hub = get_hub()
    wake = getcurrent().switch
    timer = hub.loop.timer(seconds)
    watcher.start(wake, True)
    timer.start(wake, False)
    try:
        ready = hub.switch()
    finally:
        watcher.stop()
        timer.close()
    if not ready:
        raise TimeoutError
