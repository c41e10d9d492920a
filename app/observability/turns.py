"""Long work in short turns of the event loop, so that it delays no other greenlet for long."""

import time

from gevent import get_hub

_TURN_S = 0.001


class Turns:
    """The turns of one piece of work, which calls `pause_if_due` wherever it may be interrupted."""

    def __init__(self) -> None:
        self._ends = time.monotonic() + _TURN_S

    def pause_if_due(self) -> None:
        """Let the event loop run once if this turn has lasted a millisecond.

        The timer expires in the next cycle, after the loop has polled for events. `gevent.sleep(0)` would not do: it
        lets other greenlets run, but goes on before the loop polls, for up to `sys.getswitchinterval` (5 ms).
        """
        if time.monotonic() < self._ends:
            return
        hub = get_hub()
        next_cycle = hub.loop.timer(0)
        try:
            hub.wait(next_cycle)
        finally:
            next_cycle.close()
        self._ends = time.monotonic() + _TURN_S
