"""GET /admin/live: what the status page and `top` show, as server-sent events, one a second.

A worker makes each event once, for all who watch it there, and makes none while nobody does. Each watcher is sent the
newest event when it can take one: so a watcher that does not read skips events, and there is nothing that could grow.
(WHATWG HTML section 9.2 is the standard of the stream.)
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import falcon
import gevent
import msgspec
from gevent.event import Event

from app.api.admin.access import AdminAccess
from app.api.exchange import ENVIRON_KEY
from app.observability import live_figures
from app.observability.live_figures import LiveFigures
from app.observability.metrics import Metrics, SharedState

INTERVAL_S = 1.0


class LiveFeed:
    """The events of one worker. `attach` it to the worker before anybody watches."""

    def __init__(
        self, metrics: Metrics, read_state: Callable[[], SharedState], facts: Callable[[SharedState], dict[str, Any]]
    ) -> None:
        """`facts` returns what an event says that is not counted, its endpoints among it."""
        self._metrics = metrics
        self._read_state = read_state
        self.facts = facts
        self._stops: Callable[[], bool] = lambda: False
        self._watchers = 0
        self._produces = False
        self._event = b""
        self._next = Event()
        """Set when there is a newer event, or none will follow. Then another one takes its place."""

    def attach(self, stops: Callable[[], bool]) -> None:
        """`stops` returns whether the worker is about to end, which an endless response would delay."""
        self._stops = stops

    def events(self) -> Iterator[bytes]:
        """Yields the newest event whenever there is one, until the worker stops."""
        self._watchers += 1
        try:
            if not self._produces:
                self._produces = True
                self._event = b""
                gevent.spawn(self._produce)
            yield b"retry: 1000\n\n"  # the head goes out with it: a watcher sees at once that it is connected
            sent = b""
            while self._produces:
                if self._event is sent:
                    self._next.wait()
                else:
                    sent = self._event
                    yield sent
        finally:
            self._watchers -= 1

    def _produce(self) -> None:
        figures = LiveFigures()
        try:
            while self._watchers and not self._stops():
                state, now = self._read_state(), time.monotonic()
                figures.add(live_figures.read(self._metrics, state, now))
                self._event = b"data: " + msgspec.json.encode(self._figures(state, figures)) + b"\n\n"
                self._announce()
                gevent.sleep(INTERVAL_S)
        finally:
            self._produces = False
            self._announce()

    def _announce(self) -> None:
        announced, self._next = self._next, Event()
        announced.set()

    def _figures(self, state: SharedState, figures: LiveFigures) -> dict[str, Any]:
        """Returns an event's content."""
        facts = self.facts(state)
        for endpoint in facts["endpoints"]:
            endpoint.update(figures.of_endpoint(endpoint["url"]))
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "in_flight": state.inflight,
            "limit": state.max_concurrency,
            "queued": state.queued,
            "workers": state.workers,
            "permits_reclaimed": state.permits_reclaimed,
            "metric_files_in_memory": state.metric_files_in_memory,
            **figures.of_all(),
            "models": [
                {
                    "name": model.name,
                    "in_flight": model.inflight,
                    "limit": model.capacity,
                    "queued": model.queued,
                    "rejected": model.rejected,
                    "demand": round(model.demand, 1),
                    **figures.of_model(model.name),
                }
                for model in state.models
            ],
            **facts,
        }


class LiveResource:
    """See the module's opening lines."""

    def __init__(self, feed: LiveFeed, access: AdminAccess) -> None:
        self._feed = feed
        self._access = access

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._access.check(req)
        req.env[ENVIRON_KEY].endless = True  # a page that is closed is no error of its client
        resp.content_type = "text/event-stream"
        resp.set_header("Cache-Control", "no-store")
        resp.set_header("X-Accel-Buffering", "no")  # nginx would keep events back until its buffer is full
        resp.stream = self._feed.events()
