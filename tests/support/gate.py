"""An observer of what is inside the model, independent of the router's own counting, and a gate that holds it there.

A gated model connects to the gate's Unix socket when a request enters it and stays until the gate lets it go. The
kernel closes the connection of a process that is SIGKILLed, so the observer's count is right then too.
"""

import selectors
import socket
import struct
import threading
from collections import deque
from pathlib import Path
from types import TracebackType


class Gate:
    """Counts the requests inside the model, holds them, and remembers the order and the peak."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate.sock")
        self.peak = 0
        self.entered: list[str] = []
        self._inside: deque[socket.socket] = deque()
        self._open = False
        self._changed = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(4096)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ended = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Gate":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()
        self._ended = True
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # we registered sockets only
        self._selector.close()

    @property
    def inside(self) -> int:
        """Requests inside the model now."""
        with self._changed:
            return len(self._inside)

    def pid_inside(self) -> int:
        """Process id of the worker of the request that entered first of those that are inside."""
        with self._changed:
            credentials = self._inside[0].getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]  # unix(7)
        return pid

    def wait_inside(self, count: int, seconds: float = 20) -> None:
        """Return once exactly `count` requests are inside; fail after `seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._inside) == count, seconds):
                raise AssertionError(f"{len(self._inside)} requests are inside the model, not {count}")

    def wait_entered(self, count: int, seconds: float = 20) -> None:
        """Return once `count` requests have entered in all; fail after `seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.entered) >= count, seconds):
                raise AssertionError(f"{len(self.entered)} requests have entered the model, not {count}")

    def let_go(self, count: int = 1) -> None:
        """Let the `count` that entered first finish."""
        with self._changed:
            for _ in range(count):
                _release(self._inside.popleft())
            self._changed.notify_all()

    def open(self) -> None:
        """Let everybody go, now and from now on."""
        with self._changed:
            self._open = True
            while self._inside:
                _release(self._inside.popleft())
            self._changed.notify_all()

    def close(self) -> None:
        """Hold whoever enters from now on."""
        with self._changed:
            self._open = False

    def _watch(self) -> None:
        while not self._ended:
            events = self._selector.select(0.2)
            with self._changed:
                # Ends first: of a process that died and a successor that entered, the end happened before.
                for key, _ in events:
                    if key.fileobj is not self._listener:
                        self._forget(key.fileobj)  # type: ignore[arg-type]  # we registered sockets only
                if any(key.fileobj is self._listener for key, _ in events):
                    self._accept()
                self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.settimeout(5)
            self.entered.append(sock.recv(4096).decode())
            if self._open:
                sock.close()
                continue
            self._drop_dead()
            self._inside.append(sock)
            self._selector.register(sock, selectors.EVENT_READ)
            self.peak = max(self.peak, len(self._inside))

    def _drop_dead(self) -> None:
        """Take out whoever ended before this moment, so that the peak is exact."""
        for key, _ in self._selector.select(0):
            if key.fileobj is not self._listener:
                self._forget(key.fileobj)  # type: ignore[arg-type]

    def _forget(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        if sock in self._inside:
            self._inside.remove(sock)
        sock.close()


def _release(sock: socket.socket) -> None:
    """The model sees the end of file, leaves, and closes; the watcher then forgets the socket."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # its process died; the watcher will see that
