"""A connected socket with a timeout for every wait, for clients and model servers alike.

gevent's sockets can wait too. They try the system call first, which nearly always fails when there is something to wait
for, and make a `gevent.Timeout` for each wait. Here a wait is one watcher, kept as long as the socket, and one timer;
docs/performance.md says what that saves.
"""

import ssl
import struct
import termios
import time
from fcntl import ioctl
from typing import Any

from gevent import get_hub, getcurrent
from gevent.monkey import get_original
from gevent.ssl import SSLSocket

_READABLE, _WRITABLE = 1, 2  # libev's EV_READ and EV_WRITE
_EITHER = _READABLE | _WRITABLE
_NOT_YET_READABLE = (BlockingIOError, ssl.SSLWantReadError)
_NOT_YET_WRITABLE = (BlockingIOError, ssl.SSLWantWriteError)
_INT = struct.Struct("i")
_PlainSocket = get_original("socket", "socket")


class TimedSocket:
    """Takes over a socket of gevent's, plain or TLS. One greenlet uses it at a time. It may be closed twice."""

    __slots__ = ("_needs_input", "_others", "_reads", "_tls", "sock")

    def __init__(self, sock: Any) -> None:
        self._tls = isinstance(sock, (ssl.SSLSocket, SSLSocket))
        if not self._tls:  # gevent's has its own watchers, and Python code around each call
            sock = _PlainSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        sock.setblocking(False)
        self.sock = sock
        self._reads: Any = get_hub().loop.io(sock.fileno(), _READABLE)
        self._others: dict[int, Any] | None = None  # watchers for other events; most connections need none
        self._needs_input = False  # whether TLS has to read before it can send

    def handshake(self, deadline: float) -> None:
        """Begin TLS. `deadline` is in seconds of time.monotonic(). Raises TimeoutError or OSError."""
        while True:
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                _wait(self._reads, deadline - time.monotonic())
            except ssl.SSLWantWriteError:
                _wait(self._watcher(_WRITABLE), deadline - time.monotonic())
            else:
                return

    def recv(self, size: int, timeout_s: float) -> bytes:
        """Returns the next bytes, b"" at the end. Raises TimeoutError if none come within `timeout_s`, or OSError."""
        # Others have a turn before each call, also where a fast sender has filled the buffer. But what TLS has received
        # and decrypted already, at most a record, makes no socket readable.
        if not (self._tls and self.sock.pending()):
            _wait(self._reads, timeout_s)
        while True:
            try:
                data: bytes = self.sock.recv(size)
            except _NOT_YET_READABLE:
                _wait(self._reads, timeout_s)
            except ssl.SSLWantWriteError:
                _wait(self._watcher(_WRITABLE), timeout_s)
            else:
                return data

    def is_readable_within(self, timeout_s: float) -> bool:
        """Whether there is something to read, or the end, or there is within `timeout_s`. Nothing is read."""
        if self._tls and self.sock.pending():
            return True
        try:
            _wait(self._reads, max(0.0, timeout_s))
        except TimeoutError:
            return False
        return True

    def send(self, data: bytes | memoryview, timeout_s: float) -> int:
        """Send some of the data. Returns how many bytes. Raises TimeoutError or OSError."""
        while True:
            sent = self.send_now(data)
            if sent or not data:
                return sent
            self._wait_to_send(_WRITABLE, timeout_s)

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what the socket takes without a wait. Returns how many bytes, 0 if none. Raises OSError."""
        try:
            # `send` of gevent's TLS sockets does not tell whether it needs to read or to write.
            sent: int = self.sock.write(data) if self._tls else self.sock.send(data)
        except _NOT_YET_WRITABLE:
            self._needs_input = False
            return 0
        except ssl.SSLWantReadError:
            self._needs_input = True
            return 0
        return sent

    def recv_now(self, size: int) -> bytes | None:
        """Returns what has been received, b"" at the end, None if there is nothing. Raises OSError."""
        try:
            data: bytes = self.sock.recv(size)
        except (*_NOT_YET_READABLE, ssl.SSLWantWriteError):
            return None
        return data

    def wait_for_progress(self, timeout_s: float) -> None:
        """To be called when `send_now` returned 0 and `recv_now` None.

        Waits until something comes or the socket takes more. Raises TimeoutError.
        """
        self._wait_to_send(_EITHER, timeout_s)

    def unacknowledged(self) -> int:
        """Returns how many bytes were sent that the other side's kernel has not acknowledged (SIOCOUTQ of tcp(7)).

        This holds for a connection that has ended too: the count stays as it was at the end.
        """
        count: int = _INT.unpack(ioctl(self.sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))[0]
        return count

    def close(self) -> None:
        """Close the socket and its watchers."""
        self._reads.close()
        for watcher in (self._others or {}).values():
            watcher.close()
        self.sock.close()

    def _wait_to_send(self, events: int, timeout_s: float) -> None:
        """Wait for one of these events. But TLS may have to read before it can send: then only input helps."""
        _wait(self._reads if self._needs_input else self._watcher(events), timeout_s)

    def _watcher(self, events: int) -> Any:
        """Returns the watcher for these events, other than for input alone. It is kept as long as the socket."""
        if self._others is None:
            self._others = {}
        if events not in self._others:
            self._others[events] = get_hub().loop.io(self.sock.fileno(), events)
        return self._others[events]


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
