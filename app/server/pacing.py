"""Request pacing: few requests begin in one cycle of the event loop, so that a cycle stays short whatever the load.

A cycle runs everything that is ready. Under overload that is every client that has sent a request. Rejecting all of
them takes a second and more, and meanwhile no finished request is answered, no permit comes back and no probe is
accepted. With pacing, requests over the number wait for the next cycles, in order, and requests that have begun go on.
(Envoy has the same under the name max requests per I/O cycle.)
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import get_hub, getcurrent

REQUESTS_PER_CYCLE = 16  # a few milliseconds' worth of requests


class RequestPacer:
    """Lets at most `REQUESTS_PER_CYCLE` requests begin in a cycle of the calling thread's event loop."""

    def __init__(self) -> None:
        self._hub = get_hub()
        loop = self._hub.loop
        self._left = REQUESTS_PER_CYCLE
        self._waiting: deque[Callable[[], Any]] = deque()
        self._cycle = loop.prepare(ref=False)
        self._cycle.start(self._begin_cycle)
        self._next = loop.timer(0)  # active while requests wait: the loop then polls for events and does not block

    def wait_for_turn(self) -> None:
        """Return when the request may begin: at once, unless as many have begun in this cycle as may."""
        if self._left and not self._waiting:
            self._left -= 1
            return
        wake = getcurrent().switch
        if not self._waiting:
            self._next.start(self._resume)
        self._waiting.append(wake)
        try:
            self._hub.switch()
        except BaseException:  # whatever was raised here: nothing may wake this greenlet out of a later wait
            self._waiting.remove(wake)
            raise

    def _begin_cycle(self) -> None:
        self._left = REQUESTS_PER_CYCLE

    def _resume(self) -> None:
        """Run the waiting requests that may begin. The hub calls this once a cycle."""
        self._next.stop()
        for _ in range(min(self._left, len(self._waiting))):
            self._left -= 1
            self._waiting.popleft()()
        if self._waiting:
            self._next.start(self._resume)
