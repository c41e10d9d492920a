"""Noticing that a client went away while its request waits or is served, without having to write to it."""

import select
from typing import Any

from gevent import get_hub, getcurrent
from gevent.monkey import get_original

from app.errors import ClientGone

_READ = 1
_RECHECK_S = 0.5
_poll = get_original("select", "poll")


class ClientWatch:
    """Throws `ClientGone` into the greenlet that made it, once its client has closed the connection.

    A client that has only shut down its sending side counts as gone, as it does for most proxies. Once bytes arrive
    early (a pipelined request) the socket stays readable and its events tell nothing more; from then on the watch looks
    twice a second.

    The hub runs the callback, so the greenlet is blocked in the hub at that moment and nowhere else: code between two
    blocking calls is never interrupted. Stop the watch before the socket is closed or handed to the next request.
    """

    __slots__ = ("_fd", "_greenlet", "_looks_by_time", "_watcher")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._greenlet = getcurrent()
        self._looks_by_time = False
        self._watcher: Any = get_hub().loop.io(fd, _READ)
        self._watcher.start(self._look)

    def stop(self) -> None:
        """End the watch; after this nothing is thrown. May be called again."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def _look(self) -> None:
        poller = _poll()
        poller.register(self._fd, select.POLLRDHUP)
        gone = poller.poll(0)
        if gone:
            self.stop()
            self._greenlet.throw(ClientGone("the client closed its connection"))
        elif not self._looks_by_time:
            self.stop()
            self._looks_by_time = True
            self._watcher = get_hub().loop.timer(_RECHECK_S, repeat=_RECHECK_S)
            self._watcher.start(self._look)
