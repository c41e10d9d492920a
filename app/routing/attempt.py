"""One attempt: one request to one endpoint, from the choice of the endpoint to the last byte of its response."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import structlog

from app.errors import ClientGone, UpstreamError, UpstreamUnreachable
from app.net.http_fields import Headers
from app.protocols.interfaces import Call, Reply
from app.routing.endpoint import Endpoint, Target
from app.routing.outlier_detection import Ended, Outcome
from app.upstream.headers import retry_after_s, to_client
from app.upstream.pool import Response

_READ_WHOLE_BYTES = 1 << 16
"""A response of up to this length is read before any of it is passed on: one write, and never half a response."""
_FAILURES = frozenset((500, 502, 503, 504))
_BACK_OFF_STATUSES = frozenset((401, 429, 503))
"""Statuses of an endpoint that others may spare their clients: it lacks a credential, a quota or room."""
_ABOUT_CREDENTIAL = frozenset((401, 429))
"""Where clients use credentials of their own, these say nothing about the endpoint."""

_PERHAPS_FAILED = (Outcome.FAILURE, Outcome.UNANSWERED)

_log = structlog.get_logger("router.endpoints")


class Attempt:
    """A request with one endpoint. It counts there from its making until `finish`."""

    __slots__ = (
        "_awaits_first_byte",
        "_began",
        "_contacted_at",
        "_finished",
        "_first_byte_us",
        "_target",
        "_trial",
        "endpoint",
    )

    def __init__(self, target: Target, endpoint: Endpoint, trial: bool) -> None:
        self.endpoint = endpoint
        self._target = target
        self._trial = trial
        self._began = time.monotonic()
        self._contacted_at = 0.0  # not yet
        self._finished = False
        self._awaits_first_byte = True
        self._first_byte_us = 0

    def __repr__(self) -> str:
        state = "finished" if self._finished else "trial" if self._trial else "in progress"
        return f"<Attempt {self.endpoint.url} {state}>"

    def send(self, call: Call, deadline: float) -> Reply:
        """Send the call. Returns once the head of the response is there. Raises an UpstreamError."""
        try:
            response = self.endpoint.connections.send(
                _encoded(call, self._target, self.endpoint),
                call.method,
                self._target.route.timeouts,
                deadline,
                self,
            )
            status, headers, length, *_ = response.head
            if status in _BACK_OFF_STATUSES:
                self._back_off(status, headers)
            serves = status < 300 and call.method == "POST"
            self._awaits_first_byte = serves  # the head of a stream may come long before anything is generated
            if length is None or length > _READ_WHOLE_BYTES:
                close = partial(self._abandon, response)
                return Reply(status, to_client(headers), length, self._pieces(response, serves), close)
            whole = self._whole(response)
        except BaseException as error:
            self.finish(*self._outcome_of(error))
            raise
        self.finish(*self._outcome_of_status(status, whole))
        return Reply(status, to_client(headers), length, (whole,) if whole else (), _nothing)

    def contacts_server(self) -> None:
        """See `Sender`."""
        self._contacted_at = time.monotonic()

    def may_repeat(self) -> bool:
        """See `Sender`. A request that is repeated is paid for by the retry budget."""
        if not self._target.budget.try_withdraw():
            return False
        self._target.shared.metrics.retries["stale_connection"].inc()
        return True

    def finish(self, outcome: Outcome, code: str | None) -> None:
        """End the attempt; only the first call counts.

        `code` is the status, or what went wrong. None: no request was made, so none is counted in the metrics.
        """
        if self._finished:
            return
        self._finished = True
        took_s = time.monotonic() - self._began
        route, shared, shared_id = self._target.route, self._target.shared, self.endpoint.shared_id
        shared.counters.remove(shared_id)
        ended = Ended(outcome, self._trial, int(self._contacted_at * 1000), self._first_byte_us)
        ejected = shared.outliers.end(shared_id, ended, self._target.rules)
        if (
            outcome in _PERHAPS_FAILED
            and not ejected
            and shared.outliers.fails_too_often(shared_id, self._target.rules)
        ):
            shared.back_offs.refused(self.endpoint.back_off, None)  # too many are out already: at least prefer others
        if code is None:
            return
        shared.metrics.endpoint_requests(self.endpoint.url, code).inc()
        shared.metrics.upstream_seconds(route.name).observe(took_s)
        if ejected:
            reason = "clients leave before the first byte" if outcome is Outcome.UNANSWERED else code
            _log.warning("endpoint ejected", endpoint=self.endpoint.url, model=route.name, reason=reason)

    def _back_off(self, status: int, headers: Headers) -> None:
        """Let the endpoint back off, unless the status is about the client's own credentials."""
        if not (status in _ABOUT_CREDENTIAL and self._target.route.forward_credentials):
            self._target.shared.back_offs.refused(self.endpoint.back_off, retry_after_s(headers))

    def _first_byte(self, took_s: float) -> None:
        """Record that the endpoint serves: the first byte of a successful response to an inference request is there.

        `took_s` counts from when the endpoint was contacted.
        """
        self._awaits_first_byte = False
        self._first_byte_us = int(took_s * 1e6) or 1
        self._target.shared.back_offs.served(self.endpoint.back_off)

    def _observe_first_byte(self, at: float | None) -> None:
        """`at` is the time of the first byte of the body. None: there is no body, and its end counts."""
        at = time.monotonic() if at is None else at
        self._target.shared.metrics.first_byte_seconds(self._target.route.name).observe(at - self._began)
        if self._awaits_first_byte:
            self._first_byte(at - self._contacted_at)

    def _whole(self, response: Response) -> bytes:
        try:
            body = response.body()
            first = next(body, b"")
            self._observe_first_byte(response.first_byte_at)
            return first + b"".join(body)
        finally:
            response.close()

    def _pieces(self, response: Response, serves: bool) -> Iterator[bytes]:
        health, status, error_text = self._target.shared.health, response.head.status, b""
        try:
            body = response.body()
            first = next(body, None)
            self._observe_first_byte(response.first_byte_at)
            for piece in body if first is None else chain((first,), body):
                if serves:
                    health.served(self.endpoint.shared_id)
                elif len(error_text) < _READ_WHOLE_BYTES:
                    error_text += piece
                yield piece
        except BaseException as error:
            self.finish(*self._outcome_of(error))
            raise
        response.close()
        self.finish(*self._outcome_of_status(status, error_text))

    def _abandon(self, response: Response) -> None:
        """Stop the response wherever it stands. Does nothing after its end."""
        response.close()
        if response.head.status >= 400:  # it was said before anybody left: the client, or a retry elsewhere
            self.finish(*self._outcome_of_status(response.head.status, b""))
        else:
            self.finish(self._outcome_of_leaving(), "499")

    def _outcome_of_status(self, status: int, body: bytes) -> tuple[Outcome, str]:
        failure = status in _FAILURES and not self._is_ignored(status, body)
        return Outcome.FAILURE if failure else Outcome.SUCCESS, str(status)

    def _is_ignored(self, status: int, body: bytes) -> bool:
        """Whether the route says that such an error is the client's."""
        rules = self._target.route.ejection
        if status in rules.ignored_statuses:
            return True
        text = body[:_READ_WHOLE_BYTES].decode(errors="replace").casefold()
        return any(ignored.casefold() in text for ignored in rules.ignored_texts)

    def _outcome_of(self, error: BaseException) -> tuple[Outcome, str]:
        if isinstance(error, UpstreamUnreachable) and error.not_tried:
            return Outcome.ABANDONED, error.code
        if isinstance(error, UpstreamError):
            return Outcome.FAILURE, error.code
        if isinstance(error, (ClientGone, GeneratorExit)):
            return self._outcome_of_leaving(), "499"
        return Outcome.ABANDONED, "500"

    def _outcome_of_leaving(self) -> Outcome:
        """Returns the outcome of an attempt whose client leaves now."""
        return Outcome.UNANSWERED if self._awaits_first_byte else Outcome.ABANDONED


def _nothing() -> None:
    """There is nothing left to close."""


def _encoded(call: Call, target: Target, endpoint: Endpoint) -> bytes:
    """Returns the bytes of the whole request, in the words of this endpoint."""
    path: str = call.path
    body: Sequence[bytes | memoryview] = (call.body,)
    if call.adapter is not None:
        path, body = call.adapter.encode(call, target.upstream_model, target.upstream_version)
    size = sum(map(len, body))
    fields = "\r\n".join(map(": ".join, call.headers))
    length = f"content-length: {size}\r\n" if size or call.method != "GET" else ""
    head = f"{call.method} {endpoint.base_path}{path} HTTP/1.1\r\n{endpoint.head}{length}{fields}\r\n\r\n"
    return b"".join((head.encode("latin-1"), *body))
