"""The watch on a client: notices that it left while its request waits or is served, without a write to it."""

import select
from typing import Any, Protocol

from gevent import get_hub, getcurrent
from gevent.monkey import get_original

from app.errors import ClientGone

_RECHECK_S = 0.5
_poll = get_original("select", "poll")


class Client(Protocol):
    """The connection of a client."""

    def fileno(self) -> int:
        """Returns its descriptor."""

    def arrivals(self) -> Any:
        """Returns an io watcher for its reading side. It has one user at a time, who stops it."""


class ClientWatch:
    """Throws `ClientGone` into the greenlet that made the watch, once the client has closed its connection.

    A client that has only shut down its sending side counts as gone, as it does for most proxies. Once bytes arrive
    early (a pipelined request), the socket stays readable and its events tell nothing more. From then on the watch
    polls twice a second.

    The hub runs the callback, so the greenlet is blocked in the hub at that moment and nowhere else: code between two
    blocking calls is never interrupted. Stop the watch before the socket is closed or serves the next request.
    """

    __slots__ = ("_client", "_greenlet", "_timer", "_watcher")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._greenlet = getcurrent()
        self._timer: Any = None
        self._watcher: Any = client.arrivals()
        self._watcher.start(self._look)

    def stop(self) -> None:
        """End the watch: nothing is thrown after this. May be called again."""
        self._watcher.stop()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _look(self) -> None:
        poller = _poll()
        poller.register(self._client.fileno(), select.POLLRDHUP)
        gone = poller.poll(0)
        if gone:
            self.stop()
            self._greenlet.throw(ClientGone("the client closed its connection"))
        elif self._timer is None:
            self._watcher.stop()
            self._timer = get_hub().loop.timer(_RECHECK_S, repeat=_RECHECK_S)
            self._timer.start(self._look)
