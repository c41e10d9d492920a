"""GET /admin/live: what the status page and `top` show, as server-sent events, one a second.

A worker makes each event once, for all who watch it there, and makes none while nobody does. Each watcher is sent the
newest event when it can take one: so a watcher that does not read skips events, and there is nothing that could grow.

An event has only those endpoints that have changed since the event before. A watcher that was not sent that one is sent
the same event with all endpoints, which is made when somebody needs it. An invariant: the event's content and the look
at the endpoints are of one moment. Nothing yields between the two being stored, so what is made later is right, too.
(WHATWG HTML section 9.2 is the standard of the stream.)
"""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import falcon
import gevent
import msgspec
from gevent.event import Event

from app.api.admin.access import AdminAccess
from app.api.admin.live_endpoints import LiveEndpoints
from app.api.exchange import ENVIRON_KEY
from app.observability import live_figures
from app.observability.live_figures import LiveFigures
from app.observability.metrics import Metrics, SharedState
from app.routing.endpoint_report import EndpointReport

INTERVAL_S = 1.0


class LiveFeed:
    """The events of one worker. `attach` it to the worker before anybody watches."""

    def __init__(
        self,
        metrics: Metrics,
        read_state: Callable[[], SharedState],
        facts: Callable[[SharedState], dict[str, Any]],
        reports: Callable[[], Iterable[EndpointReport]],
    ) -> None:
        """`facts` returns what an event says that is not counted, `reports` what is known of each endpoint."""
        self._metrics = metrics
        self._read_state = read_state
        self.facts = facts
        self._stops: Callable[[], bool] = lambda: False
        self._watchers = 0
        self._produces = False
        self._number = 0
        """That of the newest event, ever: a watcher may outlast the greenlet that made what it was sent."""
        self._has_event = False
        """Whether the greenlet that makes events now has made one."""
        self._content: dict[str, Any] = {}
        """Of the newest event, without its endpoints."""
        self._endpoints = LiveEndpoints(reports)
        self._changes: bytes | None = None
        """The newest event with the endpoints that have changed; None: they have changed wholly."""
        self._whole: bytes | None = None
        """The same event with all endpoints, once somebody has needed it."""
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
                self._has_event = False
                gevent.spawn(self._produce)
            yield b"retry: 1000\n\n"  # the head goes out with it: a watcher sees at once that it is connected
            sent = 0
            while self._produces:
                if self._number == sent or not self._has_event:
                    self._next.wait()
                else:
                    event = self._event_after(sent)
                    sent = self._number
                    yield event
        finally:
            self._watchers -= 1

    def _produce(self) -> None:
        figures = LiveFigures()
        try:
            while self._watchers and not self._stops():
                state, now = self._read_state(), time.monotonic()
                figures.add(live_figures.read(self._metrics, state, now))
                content = self._figures(state, figures)
                self._endpoints.look(figures.of_endpoints())
                self._content = content
                self._changes = self._whole = None
                if not self._endpoints.changed_wholly:
                    self._changes = self._encoded(self._endpoints.changed(), complete=False)
                self._number += 1
                self._has_event = True
                self._announce()
                gevent.sleep(INTERVAL_S)
        finally:
            self._produces = False
            self._announce()

    def _event_after(self, number: int) -> bytes:
        """Returns the newest event, for a watcher that was sent the one with this number last; 0: it was sent none."""
        if self._changes is not None and number and number == self._number - 1:
            return self._changes
        if self._whole is None:
            self._whole = self._encoded(self._endpoints.all(), complete=True)
        return self._whole

    def _encoded(self, endpoints: list[dict[str, Any]], *, complete: bool) -> bytes:
        content = {**self._content, "endpoints_complete": complete, "endpoints": endpoints}
        return b"data: " + msgspec.json.encode(content) + b"\n\n"

    def _announce(self) -> None:
        announced, self._next = self._next, Event()
        announced.set()

    def _figures(self, state: SharedState, figures: LiveFigures) -> dict[str, Any]:
        """Returns an event's content, without its endpoints."""
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
            **self.facts(state),
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
