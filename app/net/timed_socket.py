"""A connected socket with a timeout for every wait, for clients and model servers alike.

gevent's sockets can wait too. They try the system call first, which nearly always fails when there is something to wait
for, and start and stop a watcher and a timer for each wait. Here both outlast the wait (docs/performance.md says what
that saves):
- **The watcher for input** goes on watching, since the next wait is nearly always for input too. So the kernel is not
  told again. When input comes while nobody waits for it, the watcher stops, or it would wake the event loop until it is
  read; that input is there is kept as a flag.
- **The timer** is not moved when a wait begins, only the deadline is. When the timer is due too early, it starts again
  for what is left. So a connection that is never late costs a timer now and then, and not one for each wait.
"""

import ssl
import struct
import termios
from fcntl import ioctl
from typing import Any

from gevent import get_hub, getcurrent
from gevent.monkey import get_original
from gevent.ssl import SSLSocket

from app.native import monotonic

_OTHER = "other"
_READABLE, _WRITABLE = 1, 2  # libev's EV_READ and EV_WRITE
_EITHER = _READABLE | _WRITABLE
_NOT_YET_WRITABLE = (BlockingIOError, ssl.SSLWantWriteError)
_NOTHING_RECEIVED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_INT = struct.Struct("i")
_PlainSocket = get_original("socket", "socket")


class TimedSocket:
    """Takes over a socket of gevent's, plain or TLS. One greenlet uses it at a time. It may be closed twice."""

    __slots__ = (
        "_arrived",
        "_deadline",
        "_due",
        "_needs_input",
        "_others",
        "_reads",
        "_timer",
        "_tls",
        "_waiter",
        "_waits_for_input",
        "sock",
    )

    def __init__(self, sock: Any) -> None:
        self._tls = isinstance(sock, (ssl.SSLSocket, SSLSocket))
        if not self._tls:  # gevent's has its own watchers, and Python code around each call
            sock = _PlainSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        sock.setblocking(False)
        self.sock = sock
        self._reads: Any = get_hub().loop.io(sock.fileno(), _READABLE)
        self._others: dict[int, Any] | None = None  # watchers for other events; most connections need none
        self._needs_input = False  # whether TLS has to read before it can send
        self._arrived = False  # whether input came while nobody waited for it
        self._waiter: Any = None  # the greenlet that waits
        self._waits_for_input = False
        self._deadline = 0.0
        self._timer: Any = None
        self._due = 0.0  # when the timer is due

    def handshake(self, deadline: float) -> None:
        """Begin TLS. `deadline` is in seconds of time.monotonic(). Raises TimeoutError or OSError."""
        while True:
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                self._wait_for_input(deadline - monotonic())
            except ssl.SSLWantWriteError:
                self._wait_for(_WRITABLE, deadline - monotonic())
            else:
                return

    def recv(self, size: int, timeout_s: float) -> bytes:
        """Returns the next bytes, b"" at the end. Raises TimeoutError if none come within `timeout_s`, or OSError."""
        self._begin_recv(timeout_s)
        while True:
            try:
                data: bytes = self.sock.recv(size)
            except _NOTHING_RECEIVED as error:
                self._wait_on(error, timeout_s)
            else:
                return data

    def recv_into(self, buffer: memoryview, timeout_s: float) -> int:
        """Put the next bytes into a buffer. Returns how many, 0 at the end. Raises as `recv` does."""
        self._begin_recv(timeout_s)
        while True:
            try:
                count: int = self.sock.recv_into(buffer)
            except _NOTHING_RECEIVED as error:
                self._wait_on(error, timeout_s)
            else:
                return count

    def _begin_recv(self, timeout_s: float) -> None:
        """Wait until something can be received, in all likelihood.

        Others have a turn before each call, also where a fast sender has filled the buffer. But what TLS has received
        and decrypted already, at most a record, makes no socket readable.
        """
        if not (self._tls and self.sock.pending()):
            self._wait_for_input(timeout_s)

    def _wait_on(self, error: OSError, timeout_s: float) -> None:
        """Wait for what a call that received nothing, with this error, is waiting for."""
        if isinstance(error, ssl.SSLWantWriteError):
            self._wait_for(_WRITABLE, timeout_s)
        else:
            self._wait_for_input(timeout_s)

    def is_readable_within(self, timeout_s: float) -> bool:
        """Whether there is something to read, or the end, or there is within `timeout_s`. Nothing is read."""
        if self._tls and self.sock.pending():
            return True
        try:
            self._wait_for_input(max(0.0, timeout_s))
        except TimeoutError:
            return False
        return True

    def is_readable_before(self, other: int, timeout_s: float) -> bool:
        """Wait for something to read, here or at descriptor `other`. Returns whether it is here. Raises TimeoutError.

        Nothing is read. It may return too early.
        """
        if self._arrived or (self._tls and self.sock.pending()):
            return True
        watcher = get_hub().loop.io(other, _READABLE)
        watcher.start(self._on_other)
        if not self._reads.active:
            self._reads.start(self._on_input)
        self._waits_for_input = True
        try:
            return self._wait(timeout_s) is not _OTHER
        finally:
            watcher.close()

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
        self._arrived = False  # what is left makes the socket readable again
        try:
            data: bytes = self.sock.recv(size)
        except _NOTHING_RECEIVED:
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

    def end_tls(self) -> None:
        """Tell the other side that nothing follows, if this is TLS. What it says to that is not waited for."""
        if self._tls:
            try:
                self.sock.unwrap()
            except (OSError, ValueError):
                pass  # it does not respond at once, or the connection has ended

    def close(self) -> None:
        """Close the socket, its watchers and its timer."""
        self._reads.close()
        for watcher in (self._others or {}).values():
            watcher.close()
        self._stop_timer()
        self.sock.close()

    def _wait_to_send(self, events: int, timeout_s: float) -> None:
        """Wait for one of these events. But TLS may have to read before it can send: then only input helps."""
        if self._needs_input:
            self._wait_for_input(timeout_s)
        else:
            self._wait_for(events, timeout_s)

    def _wait_for_input(self, timeout_s: float) -> None:
        """Wait until something can be received. It may return too early. Raises TimeoutError."""
        if self._arrived:
            self._arrived = False
            return
        if not self._reads.active:
            self._reads.start(self._on_input)
        self._waits_for_input = True
        self._wait(timeout_s)

    def _wait_for(self, events: int, timeout_s: float) -> None:
        """Wait for one of these events, other than for input alone. Raises TimeoutError."""
        if self._others is None:
            self._others = {}
        if events not in self._others:
            self._others[events] = get_hub().loop.io(self.sock.fileno(), events)
        watcher = self._others[events]
        self._waits_for_input = False
        watcher.start(self._on_event)
        try:
            self._wait(timeout_s)
        finally:
            watcher.stop()

    def _wait(self, timeout_s: float) -> Any:
        """Returns what the callback says that ended the wait. Raises TimeoutError."""
        # The callbacks below switch to this greenlet from the hub, and only while it is the waiter. However the wait
        # ends, also by an exception thrown into the greenlet (ClientGone, GreenletExit), it is the waiter no more. So
        # no event or timer of this wait can wake it out of a later one on another socket.
        now = monotonic()
        self._deadline = now + timeout_s
        if self._timer is None or self._due > self._deadline:
            self._start_timer(timeout_s)
        self._waiter = getcurrent()
        try:
            ready = get_hub().switch()
        finally:
            self._waiter = None
        if not ready:
            raise TimeoutError
        return ready

    def _on_input(self) -> None:
        if self._waiter is not None and self._waits_for_input:
            self._waiter.switch(True)
        else:
            self._reads.stop()
            self._arrived = True

    def _on_event(self) -> None:
        if self._waiter is not None:
            self._waiter.switch(True)

    def _on_other(self) -> None:
        if self._waiter is not None:
            self._waiter.switch(_OTHER)

    def _on_timer(self) -> None:
        self._stop_timer()
        if self._waiter is not None:
            left = self._deadline - monotonic()
            if left > 0:
                self._start_timer(left)
            else:
                self._waiter.switch(False)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._due = self._deadline
        self._timer = get_hub().loop.timer(seconds)
        self._timer.start(self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None
