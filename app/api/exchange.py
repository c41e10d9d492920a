"""One request and its response: what is known of it, what it holds, and how that is released exactly once.

The outermost WSGI layer (outermost.py) makes an `Exchange` for every request, and ends it. Whatever was taken in
between (the permit, the watch on the client) is released there, or earlier where the request changes its model or
waits for an endpoint.

An invariant: the environ refers to the exchange, and the exchange never to the environ. So neither is part of a
reference cycle, and both are freed without the collector.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar
from wsgiref.types import WSGIEnvironment

from app.admission.limiter import Limiter
from app.admission.model_limit import ModelLimit
from app.admission.model_place import place_of
from app.admission.model_traffic import ModelTraffic
from app.admission.permit import Permit, Ticket
from app.auth.caller import Caller
from app.errors import Overload, Rejected
from app.native import monotonic, server_timing
from app.net.disconnect import Client, ClientWatch
from app.observability import telemetry_headers
from app.observability.request_trace import Trace
from app.protocols.calls import Attempts
from app.protocols.interfaces import ProtocolAdapter

ENVIRON_KEY = "router.exchange"

T = TypeVar("T")


class Exchange:
    """A request in progress. Times are seconds of `monotonic()`."""

    __slots__ = (
        "__weakref__",
        "_connection",
        "_held",
        "_place",
        "adapter",
        "attempts",
        "caller",
        "client_address",
        "delivered",
        "earlier_s",
        "endless",
        "error",
        "fallbacks",
        "full_fallbacks",
        "method",
        "model",
        "model_s",
        "overload",
        "path",
        "permit",
        "queue_s",
        "rejection",
        "reply_headers",
        "request_id",
        "route",
        "started",
        "status",
        "trace",
        "traffic",
        "watch",
    )

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.started = monotonic()
        self.route: str | None = None
        self.model = ""
        self.adapter: ProtocolAdapter | None = None
        """The protocol by which it came; None: one that every model serves."""
        self.status = 500
        self.endless = False
        """Whether its response ends only when the client leaves, which is then no early end."""
        self.delivered = False  # see `deliver`
        self.queue_s = self.model_s = 0.0
        self.earlier_s = 0.0
        """Of `model_s`: what passed with models before the last one."""
        self.rejection: str | None = None
        """The code of the error by which admission rejected it."""
        self.overload: Overload | None = None
        self.error: str | None = None
        """The code of the router's error that is the response. `overload` is the limit that it met."""
        self.attempts: Attempts = []
        self.fallbacks: Sequence[tuple[str, str, str]] = ()
        """Every change to another model: from which one, to which one, and why."""
        self.full_fallbacks = 0
        """How many fallbacks were passed over because their own limits were reached."""
        self.trace: Trace | None = None
        self.reply_headers: Sequence[tuple[str, str]] = ()
        """What Falcon need not look at: the headers of the model server's response, or the challenges of a 401."""
        self.traffic: ModelTraffic | None = None
        """Counts for the model that serves it, or the last one that was tried."""
        self.caller: Caller | None = None
        """Who sent it; None without authentication."""
        self.permit: Permit | None = None
        self.watch: ClientWatch | None = None
        self.method = environ.get("REQUEST_METHOD", "")
        self.path = environ.get("PATH_INFO", "")
        self.client_address = environ.get("REMOTE_ADDR", "")
        self.request_id = telemetry_headers.request_id(environ.get("HTTP_X_REQUEST_ID"))
        self._connection: Client | None = environ.get("gunicorn.socket")
        self._held: list[Callable[[], object]] = []
        self._place: Callable[[], object] | None = None
        """Gives back what counts the request for its model, in the model's own limit if it has one."""

    def __repr__(self) -> str:
        holds = f"{len(self._held)} held, permit {self.permit!r}"
        return f"<Exchange {self.request_id} {self.method} {self.path} {self.status}, {holds}, {self.seconds():.3f} s>"

    def hold(self, release: Callable[[], object]) -> None:
        """Register what is called when the exchange ends, before the permit is released."""
        self._held.append(release)

    def admit(
        self,
        limiter: Limiter,
        queue_timeout_s: float,
        model_limit: ModelLimit | None = None,
        traffic: ModelTraffic | None = None,
    ) -> None:
        """Take a permit, and first a place of the tenant's and of the model's own limit, unless it has these.

        Wait in the queue if need be. A refused request gives the model's place back at once, and the tenant's when the
        exchange ends. Raises a `Rejected`, or ClientGone.
        """
        began = monotonic()
        self.overload = None
        try:
            if self.caller is not None:
                self.caller.enter()
            self.traffic = traffic  # of a tenant's own limit a model's demand tells nothing
            if self._place is None:
                self._place = place_of(model_limit, traffic)
            admission = limiter.request()
            if isinstance(admission, Ticket):
                self.overload = admission.overload
                admission = self._wait_in_queue(admission, queue_timeout_s)
            self.permit = admission
        except Rejected as rejected:
            self.rejection, self.overload = rejected.code, rejected.overload
            self._leave_model()  # now, and not when the client has read that: it is in nobody's way any more
            raise
        finally:
            self.queue_s += monotonic() - began
        self._watch_client()

    def _wait_in_queue(self, ticket: Ticket, timeout_s: float) -> Permit:
        """Wait in the queue, and count as waiting meanwhile. Raises QueueTimeout or ClientGone."""
        self.hold(ticket.cancel)  # does nothing once the wait is over
        self._watch_client()
        began = monotonic()
        if self.traffic is not None:
            self.traffic.begin_wait()
        try:
            return ticket.wait(timeout_s)
        finally:
            if self.traffic is not None:
                self.traffic.end_wait()
            if self.trace is not None:
                self.trace.waited(began)

    def change_model(self, name: str, limit: ModelLimit | None, traffic: ModelTraffic | None) -> None:
        """Count the request for another model from now on. Raises ModelLimitReached, and nothing has changed then.

        The place of the other model is taken before that of this one is given back. So a request that was admitted
        counts for at least one model at any moment, and for no moment is a limit exceeded: each is compared and counted
        under the lock. Nothing yields between the two, so ClientGone, which is thrown where a greenlet waits, can't
        come between them. A worker that is killed there counts for both, and its row is cleared.
        """
        place = place_of(limit, traffic)
        left, self._place = self._place, place
        if self.rejection is not None and self.traffic is not None:
            self.traffic.count_rejected()  # by the model that it leaves
        self.model = name
        self.traffic = traffic
        self.rejection = None
        self.earlier_s = self.seconds() - self.queue_s
        if left is not None:
            left()

    def wait_for(self, function: Callable[..., T], *args: object) -> T:
        """Call a function that waits, and return what it returns. A client that leaves ends it. Counts as queueing."""
        began = monotonic()
        self._watch_client()
        try:
            return function(*args)
        finally:
            self.queue_s += monotonic() - began
            if self.trace is not None:
                self.trace.waited(began)

    def withdraw(self) -> None:
        """Give back what `admit` took: the request waits for something else first, and is then admitted again."""
        while self._held:
            self._held.pop()()
        self._leave_model()
        permit, self.permit = self.permit, None
        if permit is not None:
            permit.release(False)
        if self.caller is not None:
            self.caller.leave()

    def _leave_model(self) -> None:
        """Give back the place of the model, once."""
        place, self._place = self._place, None
        if place is not None:
            place()

    def _watch_client(self) -> None:
        """Notice from now on when the client leaves. Not earlier: a rejection is quick and leaves nothing to stop."""
        if self._connection is not None and self.watch is None:
            self.watch = ClientWatch(self._connection)

    def deliver(self) -> None:
        """Take note that the client was sent all of its response: the event that ends a stream is written.

        The client may leave from now on, and has been served all the same. So it is not watched any more, and nothing
        is thrown into what remains: reading the end of the model server's response.
        """
        self.delivered = True
        if self.watch is not None:
            self.watch.stop()

    def seconds(self) -> float:
        """Returns the time since the request's arrival."""
        return monotonic() - self.started

    def timing(self) -> str:
        """Returns the value of Server-Timing at this moment."""
        return server_timing(self.queue_s, self.model_s, self.seconds())

    def release(self, complete: bool = True) -> None:
        """Release whatever this exchange holds. `complete`: the response was, so its time counts as service.

        The watch is first: it throws into this greenlet, and once it has stopped nothing interrupts the releases.
        """
        if self.watch is not None:
            self.watch.stop()
        try:
            while self._held:
                self._held.pop()()  # the last first: the endpoint is left before its model's place is free
        finally:
            self._leave_model()
            if self.permit is not None:
                self.permit.release(complete)
            if self.caller is not None:
                self.caller.leave()
