"""Requests that wait while their model has no endpoint at all, because it is scaled to zero.

**They hold no permit, and no place of the queue or of their model's limit.** A model server takes minutes to start. A
request that held a permit meanwhile would keep it from the models that are served, and as many of them as there are
permits would stop all others. So a request waits before its admission, in a count of its own model: at most
`queue_size` of them, over all workers. It is then admitted like any other, within `QUEUE_TIMEOUT_MS`. So what waits for
one model costs others neither a permit nor a place, only memory, which the count bounds.

The count is in the worker's row (counters.py): comparing and counting are one step under the lock, and it goes with its
worker. Nothing is notified. While requests wait, one greenlet of their worker looks for newer routes, which is one read
of shared memory, every `_LOOK_S`. So no wake-up can be lost, whoever publishes.
"""

from collections.abc import Callable

import gevent
from gevent.event import Event

from app.errors import Draining, NoEndpoint
from app.native import monotonic
from app.routing.registered_model import RegisteredModel, WaitRule
from app.routing.registry import ModelRegistry
from app.shared_memory.counters import InflightCounters
from app.shared_memory.drain import Drain
from app.shared_memory.table import SharedTable

_LOOK_S = 0.02


class EndpointWait:
    """The requests of one worker that wait for the first endpoint of their model."""

    def __init__(
        self, registry: ModelRegistry, table: SharedTable, counters: InflightCounters, drain: Drain, queue_size: int
    ) -> None:
        self._registry = registry
        self._lock = table.lock
        self._counters = counters
        self._drain = drain
        self._queue_size = queue_size
        self._waiting = 0
        self._looks = False
        """Whether a greenlet looks for newer routes."""
        self._changed = Event()
        """Set, and replaced, when routes are published or the drain begins."""

    def until_endpoint(self, resolve: Callable[[], RegisteredModel], version: str, deadline: float) -> RegisteredModel:
        """Returns the model as it is once it has an endpoint for this version ("": any).

        `resolve` returns the model as it is now. It raises if newer routes serve the request no more, and that ends the
        wait. `deadline` is in seconds of time.monotonic(). Raises NoEndpoint, Draining, or what `resolve` raises.
        """
        model = resolve()
        if not lacks_endpoints(model, version):
            return model
        rule = model.wait_rule
        assert rule is not None
        self._enter(rule, model)
        try:
            return self._wait_for_endpoint(resolve, version, deadline)
        finally:
            self._counters.remove(rule.shared_id)
            self._waiting -= 1

    def _enter(self, rule: WaitRule, model: RegisteredModel) -> None:
        with self._lock:
            full = self._counters.total(rule.shared_id) >= self._queue_size or not self._counters.is_current(
                rule.shared_id, rule.name, rule.generation
            )
            if not full:
                self._counters.add(rule.shared_id)
        if full:
            if model.traffic is not None:
                model.traffic.count_rejected()  # so that the model's demand says that it is asked for
            places = f"all {self._queue_size} places to wait for one are taken"
            if not self._queue_size:
                places = "no request may wait for one: QUEUE_SIZE is 0"
            raise NoEndpoint(f"{model.route.name} has no endpoint, and {places}")
        self._waiting += 1
        if not self._looks:
            self._looks = True
            gevent.spawn(self._look, self._registry.generation)

    def _wait_for_endpoint(
        self, resolve: Callable[[], RegisteredModel], version: str, deadline: float
    ) -> RegisteredModel:
        while True:
            if self._drain.begun:
                raise Draining("the server is shutting down; send the request to another one")
            # The event is taken before the routes are looked at: a change in between sets it.
            changed = self._changed
            model = resolve()
            if not lacks_endpoints(model, version):
                return model
            left = deadline - monotonic()
            if left <= 0:
                raise NoEndpoint(f"{model.route.name} had no endpoint within {model.route.no_endpoint_wait_s:g} s")
            changed.wait(left)

    def _look(self, seen: int) -> None:
        """Wake the requests that wait when newer routes than `seen` are published, until none waits."""
        while self._waiting:
            gevent.sleep(_LOOK_S)
            generation = self._registry.generation
            if generation != seen or self._drain.begun:
                seen = generation
                changed, self._changed = self._changed, Event()
                changed.set()
        self._looks = False  # nothing yields between the last look at `_waiting` and this


def lacks_endpoints(model: RegisteredModel, version: str) -> bool:
    """Whether a request for this version ("": any) has to wait for an endpoint."""
    return model.wait_rule is not None and model.wait_rule.lacks_endpoints(version)
