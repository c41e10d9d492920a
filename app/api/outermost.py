"""The outermost WSGI layer: it makes an `Exchange` for every request, and ends it exactly once.

The exchange ends after the last byte, when the server closes the response, or at once when the application raises. This
has to be the outermost layer: Falcon closes no stream on HEAD, nor when a middleware raises.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from gevent import GreenletExit

from app.api.exchange import ENVIRON_KEY, Exchange
from app.errors import ClientGone, CutOff, ResponseStalled, UpstreamError
from app.http_fields import Headers

CLIENT_CLOSED_REQUEST = 499
"""Status counted for a client that left before its response was complete (nginx's convention; nobody receives it)."""
BROKEN_OFF = 502
"""Status counted for a response that its model server broke off after its head had been sent."""
CUT_OFF = 503
"""Status counted for a response that a drain cut off after its head had been sent."""


def with_exchange(application: WSGIApplication, on_end: Callable[[Exchange], None]) -> WSGIApplication:
    """The outermost layer: every request gets an exchange, every response its id and timing; `on_end` runs once."""

    def outermost(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = environ[ENVIRON_KEY] = Exchange(environ)
        body = _ResponseBody(exchange, start_response, on_end)
        try:
            body.pieces = application(environ, body.start)
        except BaseException as error:  # no server will call `close`: there is no response to close
            body.abandon(error)
            raise
        return body

    return outermost


class _ResponseBody:
    """The response body; its `close`, which WSGI servers always call, ends the exchange."""

    __slots__ = ("_complete", "_exchange", "_on_end", "_start", "pieces")

    def __init__(self, exchange: Exchange, start_response: StartResponse, on_end: Callable[[Exchange], None]) -> None:
        self._exchange = exchange
        self._start = start_response
        self._on_end: Callable[[Exchange], None] | None = on_end
        self._complete = False
        self.pieces: Iterable[bytes] = ()

    def __repr__(self) -> str:
        state = "ended" if self._on_end is None else "complete" if self._complete else "in progress"
        return f"<response body of {self._exchange!r}, {state}>"

    def start(self, status: str, headers: Headers, exc_info: Any = None, /) -> Callable[[bytes], object]:
        """The application's start_response."""
        exchange = self._exchange
        exchange.status = int(status[:3])
        headers = [
            *headers,
            *exchange.reply_headers,
            ("X-Request-Id", exchange.request_id),
            ("Server-Timing", exchange.timing()),
        ]
        return self._start(status, headers, exc_info) if exc_info else self._start(status, headers)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.pieces
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
        # WSGI tells `close` nothing. But a server calls it in a `finally`, so what ended the response is handled now.
        reason = sys.exception()
        try:
            close_pieces = getattr(self.pieces, "close", None)
            if close_pieces is not None:
                close_pieces()
        finally:
            complete = self._complete or exchange.delivered
            exchange.release(complete)
            if not complete and not exchange.endless:
                _end_early(exchange, reason)
            on_end(exchange)

    def abandon(self, error: BaseException) -> None:
        """End the exchange of an application that raised instead of returning a response."""
        self._complete = not isinstance(error, (ClientGone, GreenletExit))
        self.close()


def _end_early(exchange: Exchange, reason: BaseException | None) -> None:
    """Set status and error of an exchange whose response is incomplete, and has not failed in the application.

    What the application raises makes a response complete (`__iter__`). So a TimeoutError is that of a write to the
    client. The kernel's own has an errno: it gave up a connection whose other side is no longer there.
    """
    exchange.status = CLIENT_CLOSED_REQUEST
    if isinstance(reason, GreenletExit):
        exchange.status, exchange.error = CUT_OFF, CutOff.code
    elif isinstance(reason, TimeoutError) and reason.errno is None:
        exchange.error = ResponseStalled.code
    else:
        return
    if exchange.trace is not None:
        exchange.trace.failed(exchange.error)
