"""Noticing that a client went away while its request waits or is served, without having to write to it."""

import select
from typing import Any

from gevent import get_hub, getcurrent
from gevent.monkey import get_original

from app.errors import ClientGone

_READ = 1
_poll = get_original("select", "poll")


class ClientWatch:
    """Throws `ClientGone` into the greenlet that made it, once its client has closed the connection.

    A client that has only shut down its sending side counts as gone, as it does for most proxies. Bytes that arrive
    early (a pipelined request) end the watch: behind them a close can't be told from the hub's event any more.

    The hub runs the callback, so the greenlet is blocked in the hub at that moment and nowhere else: code between two
    blocking calls is never interrupted. Stop the watch before the socket is closed or handed to the next request.
    """

    __slots__ = ("_fd", "_greenlet", "_watcher")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._greenlet = getcurrent()
        self._watcher: Any = get_hub().loop.io(fd, _READ)
        self._watcher.start(self._on_readable)

    def stop(self) -> None:
        """End the watch; after this nothing is thrown. May be called again."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def _on_readable(self) -> None:
        poller = _poll()
        poller.register(self._fd, select.POLLRDHUP)
        gone = poller.poll(0)
        self.stop()
        if gone:
            self._greenlet.throw(ClientGone("the client closed its connection"))
