"""Few requests begin in one turn of the event loop, so that a turn stays short whatever the load.

A turn runs everything that is ready. Under overload that is every client that knocks: refusing them all takes a second
and more, and meanwhile no finished request is answered, no permit returns and no probe is accepted. With the turnstile
whoever is over the number waits for the next turns, in order, and what has begun goes on in between.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import get_hub, getcurrent

REQUESTS_PER_CYCLE = 8  # a few milliseconds' worth of requests


class RequestPacer:
    """Lets at most `REQUESTS_PER_CYCLE` pass in a turn of the calling thread's event loop."""

    def __init__(self) -> None:
        self._hub = get_hub()
        loop = self._hub.loop
        self._left = REQUESTS_PER_CYCLE
        self._waiting: deque[Callable[[], Any]] = deque()
        self._turn = loop.prepare(ref=False)
        self._turn.start(self._begin_turn)
        self._next = loop.timer(0)  # while somebody waits, the loop looks for events and doesn't wait for them

    def wait_for_turn(self) -> None:
        """Return when the caller may go on: at once, unless more have come in this turn than may pass."""
        if self._left and not self._waiting:
            self._left -= 1
            return
        wake = getcurrent().switch
        if not self._waiting:
            self._next.start(self._let_pass)
        self._waiting.append(wake)
        try:
            self._hub.switch()
        except BaseException:  # whatever was thrown in: nothing may wake this greenlet later, out of another wait
            self._waiting.remove(wake)
            raise

    def _begin_turn(self) -> None:
        self._left = REQUESTS_PER_CYCLE

    def _let_pass(self) -> None:
        """In the hub, once a turn: run the requests that may begin."""
        self._next.stop()
        for _ in range(min(self._left, len(self._waiting))):
            self._left -= 1
            self._waiting.popleft()()
        if self._waiting:
            self._next.start(self._let_pass)
