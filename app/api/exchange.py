"""One request and its answer: what is known of it, what it holds, and how that is given back exactly once.

The outermost WSGI layer makes an `Exchange` for every request and ends it after the last byte, when the server closes
the response, or at once when the application raises. Whatever was taken in between (the permit, the watch on the
client) is given back there and nowhere else. It has to be the outermost layer: Falcon closes no stream on HEAD, nor
when a middleware raises.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from app.admission.limiter import Limiter
from app.admission.model_limit import ModelLimit
from app.admission.permit import Permit, Ticket
from app.errors import ClientGone, Rejected, UpstreamError
from app.net.disconnect import ClientWatch

ENVIRON_KEY = "router.exchange"
CLIENT_CLOSED_REQUEST = 499
"""Status counted for a client that left before its answer was complete (nginx's convention; nobody receives it)."""
BROKEN_OFF = 502
"""Status counted for an answer that its model server broke off after its head had been sent."""

Write: TypeAlias = Callable[[bytes], object]
Headers: TypeAlias = list[tuple[str, str]]
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")


class Exchange:
    """A request in progress. Times are seconds of `time.monotonic()`."""

    route: str | None = None
    model = ""
    status = 500
    queue_s = 0.0
    model_s = 0.0
    refusal: str | None = None
    reply_headers: Sequence[tuple[str, str]] = ()
    """What the model server's answer says, to be passed on."""
    permit: Permit | None = None
    watch: ClientWatch | None = None

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.started = time.monotonic()
        self.environ = environ
        self.method = environ.get("REQUEST_METHOD", "")
        given = environ.get("HTTP_X_REQUEST_ID")
        self.request_id = given if given and _WELL_FORMED_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        self._held: list[Callable[[], object]] = []

    def hold(self, give_back: Callable[[], object]) -> None:
        """Have this called when the exchange ends, before the permit goes back."""
        self._held.append(give_back)

    def admit(self, limiter: Limiter, queue_timeout_s: float, model_limit: ModelLimit | None = None) -> None:
        """Take a permit, and before it one of the model's own limit; wait in the queue if need be.

        Raises a `Rejected`, or ClientGone.
        """
        began = time.monotonic()
        try:
            if model_limit is not None:
                self.hold(model_limit.acquire())
            admission = limiter.request()
            if isinstance(admission, Ticket):
                self.hold(admission.cancel)
                self._watch_client()
                admission = admission.wait(queue_timeout_s)
            self.permit = admission
        except Rejected as refused:
            self.refusal = refused.code
            raise
        finally:
            self.queue_s = time.monotonic() - began
        self._watch_client()

    def _watch_client(self) -> None:
        """From now on the client's leaving is noticed. Not before there is something to stop: a refusal is quick."""
        sock = self.environ.get("gunicorn.socket")
        if sock is not None and self.watch is None:
            self.watch = ClientWatch(sock)

    def seconds(self) -> float:
        """Since the request's arrival."""
        return time.monotonic() - self.started

    def timing(self) -> str:
        """Server-Timing (W3C): milliseconds in the queue, in the model, and in all so far."""
        total = self.seconds()
        return f"queue;dur={self.queue_s * 1e3:.3f}, model;dur={self.model_s * 1e3:.3f}, total;dur={total * 1e3:.3f}"

    def give_back(self, served: bool = True) -> None:
        """Give back whatever this exchange holds. The watch goes first: nothing may be thrown after this."""
        if self.watch is not None:
            self.watch.stop()
        try:
            while self._held:
                self._held.pop()()  # the last first: the upstream is left before its model's place is free
        finally:
            if self.permit is not None:
                self.permit.release(served)


def with_exchange(application: WSGIApplication, on_end: Callable[[Exchange], None]) -> WSGIApplication:
    """The outermost layer: every request gets an exchange, every answer its id and timing; `on_end` runs once."""

    def outermost(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = environ[ENVIRON_KEY] = Exchange(environ)
        answer = _Answer(exchange, start_response, on_end)
        try:
            answer.body = application(environ, answer.start)
        except BaseException as error:  # no server will call `close`: there is no response to close
            answer.abandon(error)
            raise
        return answer

    return outermost


class _Answer:
    """The response body; its `close`, which WSGI servers always call, ends the exchange."""

    __slots__ = ("_complete", "_exchange", "_on_end", "_start", "body")

    def __init__(self, exchange: Exchange, start_response: StartResponse, on_end: Callable[[Exchange], None]) -> None:
        self._exchange = exchange
        self._start = start_response
        self._on_end: Callable[[Exchange], None] | None = on_end
        self._complete = False
        self.body: Iterable[bytes] = ()

    def start(self, status: str, headers: Headers, exc_info: Any = None, /) -> Write:
        """The application's start_response."""
        exchange = self._exchange
        exchange.status = int(status[:3])
        headers += (
            *exchange.reply_headers,
            ("X-Request-Id", exchange.request_id),
            ("Server-Timing", exchange.timing()),
        )
        return self._start(status, headers, exc_info) if exc_info else self._start(status, headers)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.body
        except Exception as error:
            # It failed in the middle, whatever its head said.
            self._exchange.status = BROKEN_OFF if isinstance(error, UpstreamError) else 500
            self._complete = True
            raise
        self._complete = True

    def close(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        exchange = self._exchange
        try:
            close_body = getattr(self.body, "close", None)
            if close_body is not None:
                close_body()
        finally:
            exchange.give_back(served=self._complete)
            if not self._complete:
                exchange.status = CLIENT_CLOSED_REQUEST
            # They hold each other: left so, every request would be garbage for the collector to find.
            exchange.environ.pop(ENVIRON_KEY, None)
            on_end(exchange)

    def abandon(self, error: BaseException) -> None:
        """End the exchange of an application that raised instead of answering."""
        self._complete = not isinstance(error, ClientGone)
        self.close()
