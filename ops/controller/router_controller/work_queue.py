"""Keys to work on: one task a key at a time, and a delay after a failure that ordinary events do not cut short."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from router_controller.kinds import Key


class WorkQueue:
    """Runs `work` for every key that is added.

    `work` returns the seconds after which it must run again because it failed, or None. What is added while `work` runs
    for the key makes it run once more: it may have read the state before the change.
    """

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], at_once: int) -> None:
        self._work = work
        self._room = asyncio.Semaphore(at_once)
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._again: dict[Key, bool] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Returns how many keys are worked on, or wait for it. Keys that wait after a failure don't count."""
        return len(self._tasks)

    def add(self, key: Key, *, urgent: bool) -> None:
        """Work on the key, now; unless it failed and is delayed, which only something urgent cuts short."""
        if key in self._tasks:
            self._again[key] = urgent or self._again.get(key, False)
        elif urgent or key not in self._timers:
            self._start(key)

    async def stop(self) -> None:
        """Stop everything. What is being worked on is cancelled."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._again.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    def _start(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer:
            timer.cancel()
        self._tasks[key] = asyncio.get_running_loop().create_task(self._run(key))

    async def _run(self, key: Key) -> None:
        delay_s = None
        try:
            async with self._room:
                self._again.pop(key, None)  # what came before the start is seen
                delay_s = await self._work(key)
        finally:
            del self._tasks[key]
        urgent = self._again.pop(key, None)
        if urgent or (urgent is not None and delay_s is None):
            self._start(key)
        elif delay_s is not None:
            self._timers[key] = asyncio.get_running_loop().call_later(delay_s, self._start, key)
