"""The controller at work, while it is the leader: watches of all kinds, and a queue of resources."""

import asyncio
import time

from router_controller.api import Api
from router_controller.events import Events
from router_controller.kinds import CHILDREN, CONFIG_MAP, INFERENCE_SERVICE, MANAGED_BY_LABEL, MANAGER, Key, Kind
from router_controller.metrics import QUEUE, RESOURCES
from router_controller.plan import Defaults
from router_controller.reconciler import Reconciler
from router_controller.settings import Settings
from router_controller.store import Store
from router_controller.templates import routes_name
from router_controller.watcher import Timing, Watcher
from router_controller.work_queue import WorkQueue

AT_ONCE = 32
"""Resources that are reconciled at the same time: one that the API server is slow with delays no other."""


class Controller:
    """`run` does the work until it is cancelled; it may be run again."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._watchers: list[Watcher] = []
        self._stores: dict[Kind, Store] = {}
        self._generations: dict[Key, int] = {}
        self._queue: WorkQueue | None = None

    def silent_s(self) -> float:
        """Returns for how long the most silent watch has brought nothing, in seconds; 0 without watches."""
        now = time.monotonic()
        return max((now - watcher.heard_at for watcher in self._watchers), default=0.0)

    async def run(self) -> None:
        """Watch, and reconcile what changes."""
        settings = self._settings
        timing = Timing(settings.watch_timeout_s, settings.watch_read_timeout_s)
        namespace = settings.watch_namespace
        self._generations = {}
        resources = Watcher(self._api, INFERENCE_SERVICE, namespace, self._changed, timing)
        children = [
            Watcher(self._api, kind, namespace, self._changed, timing, labels=f"{MANAGED_BY_LABEL}={MANAGER}")
            for kind in CHILDREN
        ]
        self._watchers = [resources, *children]
        self._stores = {watcher.store.kind: watcher.store for watcher in self._watchers}
        defaults = Defaults(settings.router_image, settings.prometheus_url)
        reconciler = Reconciler(self._api, self._stores, defaults, Events(self._api, settings.pod_name))
        try:
            async with asyncio.TaskGroup() as tasks:
                for watcher in self._watchers:
                    tasks.create_task(watcher.run())
                for watcher in self._watchers:
                    await watcher.listed()
                # Not before all is known: what is merely not listed yet would look as if it did not exist.
                self._queue = WorkQueue(reconciler.reconcile, AT_ONCE)
                self._add_all()
                tasks.create_task(self._measure(self._queue))
        finally:
            self._watchers = []
            queue, self._queue = self._queue, None
            if queue is not None:
                await queue.stop()

    def _changed(self, kind: Kind, key: Key, gone: bool) -> None:
        if self._queue is None:
            return
        if key == ("", ""):  # the API server has a kind that it lacked
            self._add_all()
            return
        if kind is INFERENCE_SERVICE:
            self._queue.add(key, urgent=self._is_new(key))
            return
        namespace, name = key
        owner = name.removesuffix(routes_name("")) if kind is CONFIG_MAP else name
        if self._stores[INFERENCE_SERVICE].get((namespace, owner)):
            self._queue.add((namespace, owner), urgent=gone)

    def _is_new(self, key: Key) -> bool:
        """Returns whether the spec of a resource changed, and not only its status."""
        resource = self._stores[INFERENCE_SERVICE].get(key)
        if resource is None:
            self._generations.pop(key, None)
            return True
        generation: int = resource["metadata"]["generation"]
        before, self._generations[key] = self._generations.get(key), generation
        return before != generation

    def _add_all(self) -> None:
        if self._queue is not None:
            for key in self._stores[INFERENCE_SERVICE].keys():  # noqa: SIM118  # a method, which returns a copy
                self._queue.add(key, urgent=True)

    async def _measure(self, queue: WorkQueue) -> None:
        while True:
            RESOURCES.set(len(self._stores[INFERENCE_SERVICE]))
            QUEUE.set(len(queue))
            await asyncio.sleep(1)
