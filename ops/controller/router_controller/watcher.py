"""Keeps a store in step with the API server: a list, then a watch from its version on, for ever."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from router_controller.api import Api
from router_controller.backoff import delay_s
from router_controller.errors import ApiFailure
from router_controller.kinds import Key, Kind, Object, key_of
from router_controller.metrics import WATCH_ENDS
from router_controller.store import Store

LONGEST_DELAY_S = 10.0

_log = structlog.get_logger(part="watch")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the server is asked to watch; how long it may be silent (it sends a bookmark a minute); and how often it
    is asked for a kind that it lacks, or that the service account may not see. In seconds.
    """

    watch_s: float = 240.0
    read_s: float = 120.0
    absent_s: float = 30.0


class Watcher:
    """`changed` is called with every key that changed, after the store has the change; `gone` tells a deletion."""

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str | None,
        changed: Callable[[Kind, Key, bool], None],
        timing: Timing,
        **selectors: str,
    ) -> None:
        self.store = Store(kind)
        self.heard_at = time.monotonic()
        self._api = api
        self._namespace = namespace
        self._changed = changed
        self._timing = timing
        self._selectors = selectors
        self._listed = asyncio.Event()

    async def listed(self) -> None:
        """Wait for the first list."""
        await self._listed.wait()

    async def run(self) -> None:
        """List and watch until cancelled."""
        version: str | None = None
        failures = 0
        while True:
            started = time.monotonic()
            try:
                if version is None:
                    version = await self._list()
                version = await self._watch(version)
                failures = 0 if time.monotonic() - started > 1 else failures + 1
                why, pause_s = "ended", delay_s(failures, LONGEST_DELAY_S) if failures else 0.0
            except _Broken as broken:
                failures = 1 if broken.heard else failures + 1
                # After 403 and 404 too: the store may not hold what there is by the time the kind can be seen again.
                version = None if broken.cause.status in {403, 404, 410} else broken.version
                why, pause_s = self._judge(broken, failures)
            WATCH_ENDS.labels(self.store.kind.name, why).inc()
            await asyncio.sleep(pause_s)

    def _judge(self, broken: "_Broken", failures: int) -> tuple[str, float]:
        """Returns why a watch broke, and how long to wait.

        Only a list tells that a kind is absent. A watch that is refused is not enough: an API server that has just
        started may refuse what it serves a moment later.
        """
        failure = broken.cause
        if failure.status in {403, 404} and self.store.kind.optional and broken.version is None:
            self._absent()
            return "absent", self._timing.absent_s
        why = "expired" if failure.status == 410 else "failed"
        pause_s = delay_s(failures, LONGEST_DELAY_S, failure.retry_after_s)
        _log.warning(f"watch {why}", kind=self.store.kind.name, error=failure.message, again_in_s=round(pause_s, 1))
        return why, pause_s

    def _absent(self) -> None:
        self.heard_at = time.monotonic()
        for key in self.store.replace(()):
            self._changed(self.store.kind, key, True)
        self.store.available = False
        self._listed.set()

    async def _list(self) -> str:
        try:
            version, items = await self._api.list(self.store.kind, self._namespace, **self._selectors)
        except ApiFailure as failure:
            raise _Broken(failure, None, heard=False) from failure
        self.heard_at = time.monotonic()
        appeared = self.store.available is False
        self.store.available = True
        for key in self.store.replace(items):
            self._changed(self.store.kind, key, self.store.get(key) is None)
        self._listed.set()
        if appeared:
            self._changed(self.store.kind, ("", ""), False)
        return version

    async def _watch(self, version: str) -> str:
        """Take changes until the server ends the watch. Returns the version to go on from."""
        heard = False
        timing = self._timing
        events = self._api.watch(
            self.store.kind, self._namespace, version, timing.watch_s, timing.read_s, **self._selectors
        )
        try:
            async with aclosing(events):  # type: ignore[type-var]  # it is a generator
                async for change, item in events:
                    heard = True
                    self.heard_at = time.monotonic()
                    version = str(item["metadata"]["resourceVersion"])
                    if change != "BOOKMARK":
                        self._take(change, item)
        except ApiFailure as failure:
            raise _Broken(failure, version, heard) from failure
        self.heard_at = time.monotonic()
        return version

    def _take(self, change: str, item: Object) -> None:
        key, gone = key_of(item), change == "DELETED"
        if gone:
            self.store.remove(item)
        elif not self.store.put(item):
            return
        self._changed(self.store.kind, key, gone)


class _Broken(Exception):
    """A list or a watch broke. `heard`: it had brought something first."""

    def __init__(self, cause: ApiFailure, version: str | None, heard: bool) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.version = version
        self.heard = heard
