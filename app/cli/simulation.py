"""Requests of a log, replayed through the router's own admission and balancing on a simulated clock.

What decides is the code that serves: `Limiter`, `ModelLimit`, and the choice of an endpoint with its outlier detection.
Only the clock is another one (`native.stop_clock`), which jumps from one event to the next, and nothing is sent. So the
result depends on the log, the settings and the seed only, to the bit, and an hour of log takes seconds.

What is assumed:
- A request takes as long inside the model as it did, on whichever endpoint and with however many beside it. One that
  was rejected takes as long as a random one of the same model.
- A client that left leaves again, after the same time.
- An endpoint that failed a request fails it again; another endpoint serves it.
- What `replay_router.not_modelled` lists does not happen: retries, fallbacks, health checks and more.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from app.admission.permit import Permit, Ticket
from app.bootstrap import Router
from app.cli.access_log import Logged
from app.errors import NoEndpoint, QueueTimeout, Rejected, RouterError
from app.native import stop_clock
from app.protocols.calls import Call
from app.routing.attempt import Attempt
from app.routing.outlier_detection import Outcome
from app.routing.remote_model import RemoteModel

_BEGIN_US = 50_000_000_000
"""The clock's first time. Whatever lasts, such as an ejection from before, is over by then."""
_SERVED = 200
_FAILED = 500


class Replayed(NamedTuple):
    """What became of a request."""

    logged: Logged
    result: str
    """`served`, `failed`, `client_left`, or the code of the error by which it was rejected."""
    queue_us: int = 0
    model_us: int = 0
    endpoint: str = ""


class _Event(IntEnum):
    """In the order of those of one moment: what ends makes room for what begins."""

    END = 0
    LEAVE = 1
    TIMEOUT = 2
    ARRIVE = 3


class _Request:
    """A request in the simulation. Times are microseconds of the simulated clock."""

    def __init__(self, logged: Logged, arrives_us: int, takes_us: int) -> None:
        self.logged = logged
        self.arrives_us = arrives_us
        self.takes_us = takes_us
        self.begins_us = 0
        self.leave_place: Callable[[], object] | None = None
        self.ticket: Ticket | None = None
        self.permit: Permit | None = None
        self.attempt: Attempt | None = None
        self.error = ""
        """The code of the error that ends it, after it got a permit."""
        self.over = False


class Simulation:
    """One replay. While it runs, the clock stands for all that this process does; and it seeds `random`."""

    def __init__(self, router: Router, requests: Sequence[Logged], seed: int) -> None:
        """This process is the router's only worker. `requests` are in order of arrival."""
        self._router = router
        self._queue_timeout_us = router.settings.queue_timeout_ms * 1000
        self._events: list[tuple[int, _Event, int, _Request]] = []
        self._waiting: deque[_Request] = deque()
        self._results: list[Replayed] = []
        self._now_us = _BEGIN_US
        self._pushed = 0
        random.seed(seed)
        takes = _times_of_model(requests, random.Random(seed))  # noqa: S311  # a draw, not a secret
        for logged in requests:
            arrives_us = _BEGIN_US + logged.at_us - requests[0].at_us
            self._push(arrives_us, _Event.ARRIVE, _Request(logged, arrives_us, takes(logged)))

    def run(self) -> list[Replayed]:
        """Returns what became of every request, in the order in which they ended."""
        does = {
            _Event.END: self._end,
            _Event.LEAVE: self._leave,
            _Event.TIMEOUT: self._time_out,
            _Event.ARRIVE: self._arrive,
        }
        try:
            while self._events:
                self._now_us, event, _, request = heapq.heappop(self._events)
                stop_clock(self._now_us * 1000)
                if not request.over:
                    does[event](request)
        finally:
            stop_clock(-1)  # it goes on
        return self._results

    def _push(self, at_us: int, event: _Event, request: _Request) -> None:
        self._pushed += 1  # of one moment, what was pushed first comes first
        heapq.heappush(self._events, (at_us, event, self._pushed, request))

    def _arrive(self, request: _Request) -> None:
        """Admit a request as `Exchange.admit` does: a place of its model first, then a permit or one in the queue."""
        limiter = self._router.limiter
        try:
            model = self._router.models.registry.find(request.logged.model)
            if model.limit is not None:
                request.leave_place = model.limit.acquire()
            elif model.traffic is not None:
                request.leave_place = model.traffic.enter()
            admission = limiter.request()
        except RouterError as error:
            self._reject(request, error)
            return
        if request.logged.client_left:
            self._push(request.arrives_us + request.logged.total_us, _Event.LEAVE, request)
        if isinstance(admission, Ticket):
            request.ticket = admission
            self._waiting.append(request)
            self._push(request.arrives_us + self._queue_timeout_us, _Event.TIMEOUT, request)
        else:
            self._begin(request, admission)

    def _begin(self, request: _Request, permit: Permit) -> None:
        request.permit, request.begins_us = permit, self._now_us
        model = self._router.models.registry.find(request.logged.model).model
        if isinstance(model, RemoteModel):
            request.attempt = model.begin(Call("POST", "/", []))
            if request.attempt is None:
                request.takes_us, request.error = 0, NoEndpoint.code
            else:
                request.attempt.contacts_server()
        self._push(self._now_us + request.takes_us, _Event.END, request)

    def _end(self, request: _Request) -> None:
        failed = request.logged.failed and self._endpoint(request) in ("", request.logged.endpoint)
        if request.attempt is not None:
            status = request.logged.status if failed else _SERVED
            request.attempt.finish(Outcome.FAILURE if failed else Outcome.SUCCESS, str(status))
        self._tell(request, request.error or ("failed" if failed else "served"))
        self._release(request, served=True)

    def _leave(self, request: _Request) -> None:
        if request.ticket is not None and request.permit is None:
            self._waiting.remove(request)
            request.ticket.cancel()
        elif request.attempt is not None:
            request.attempt.finish(Outcome.ABANDONED, "499")
        self._tell(request, "client_left")
        self._release(request, served=False)

    def _time_out(self, request: _Request) -> None:
        if request.permit is None and request.ticket is not None:
            self._waiting.remove(request)
            try:
                request.ticket.wait(0)
            except QueueTimeout as error:
                self._reject(request, error)

    def _reject(self, request: _Request, error: RouterError) -> None:
        self._tell(request, error.code)
        if request.leave_place is not None:
            request.leave_place()

    def _tell(self, request: _Request, result: str) -> None:
        request.over = True
        entered = request.permit is not None
        queue_us = (request.begins_us if entered else self._now_us) - request.arrives_us
        model_us = self._now_us - request.begins_us if entered else 0
        self._results.append(Replayed(request.logged, result, queue_us, model_us, self._endpoint(request)))

    def _release(self, request: _Request, *, served: bool) -> None:
        """Give back what a request holds, in the order of `Exchange.release`, and begin those that may enter now."""
        if request.leave_place is not None:
            request.leave_place()
            request.leave_place = None
        if request.permit is not None:
            request.permit.release(served)
        while self._waiting and self._waiting[0].ticket is not None and self._waiting[0].ticket.admitted:
            admitted = self._waiting.popleft()
            assert admitted.ticket is not None
            self._begin(admitted, admitted.ticket.wait(0))

    @staticmethod
    def _endpoint(request: _Request) -> str:
        return "" if request.attempt is None else request.attempt.endpoint.url


def _times_of_model(requests: Sequence[Logged], draws: random.Random) -> Callable[[Logged], int]:
    """Returns what tells how long a request takes inside its model."""
    known: dict[str, list[int]] = {}
    for one in requests:
        if one.model_us and one.status < _FAILED and not one.client_left:
            known.setdefault(one.model, []).append(one.model_us)
    everything = [time for times in known.values() for time in times] or [one.model_us for one in requests]

    def takes(logged: Logged) -> int:
        if logged.model_us and not logged.client_left:
            return logged.model_us
        if logged.model_us:  # its client left before it ended: it takes longer than the client waits
            return logged.total_us + 1
        return draws.choice(known.get(logged.model, everything))

    return takes


def is_rejected(result: str) -> bool:
    """Whether a result says that admission rejected the request."""
    return result in {error.code for error in _leaves(Rejected)}


def _leaves(kind: type[Rejected]) -> set[type[Rejected]]:
    return {kind}.union(*(_leaves(other) for other in kind.__subclasses__()))
