"""One attempt: one request to one endpoint, from the choice of the endpoint to the last byte of its response."""

import time
from collections.abc import Iterator
from functools import partial

import structlog

from app.errors import ClientGone, UpstreamError, UpstreamUnreachable
from app.net.http_fields import Headers
from app.protocols.interfaces import Call, Reply
from app.routing.endpoint import Endpoint, Target
from app.routing.outlier_detection import Outcome
from app.routing.retry_budget import RetryBudget
from app.upstream.headers import retry_after_s, to_client
from app.upstream.pool import Response

_READ_WHOLE_BYTES = 1 << 16
"""A response of up to this length is read before any of it is passed on: one write, and never half a response."""
_FAILURES = frozenset((500, 502, 503, 504))
_BACK_OFF_STATUSES = frozenset((429, 503))

_log = structlog.get_logger("router.endpoints")


class Attempt:
    """A request with one endpoint. It counts there from its making until `finish`."""

    __slots__ = ("_began", "_finished", "_target", "_trial", "endpoint")

    def __init__(self, target: Target, endpoint: Endpoint, trial: bool) -> None:
        self.endpoint = endpoint
        self._target = target
        self._trial = trial
        self._began = time.monotonic()
        self._finished = False

    def __repr__(self) -> str:
        state = "finished" if self._finished else "trial" if self._trial else "in progress"
        return f"<Attempt {self.endpoint.url} {state}>"

    def send(self, call: Call, deadline: float, budget: RetryBudget) -> Reply:
        """Send the call. Returns once the head of the response is there. Raises an UpstreamError.

        The budget is that of a request that is repeated because its connection had been closed.
        """
        try:
            response = self.endpoint.connections.send(
                _encoded(call, self._target, self.endpoint),
                call.method,
                self._target.route.timeouts,
                deadline,
                may_repeat=partial(self._may_repeat, budget),
            )
            status, headers, length, *_ = response.head
            if status in _BACK_OFF_STATUSES:
                self._back_off(status, headers)
            if length is None or length > _READ_WHOLE_BYTES:
                close = partial(self._abandon, response)
                return Reply(status, to_client(headers), length, self._pieces(response), close)
            whole = self._whole(response)
        except BaseException as error:
            self.finish(*_outcome_of(error))
            raise
        self.finish(*_outcome_of_status(status))
        return Reply(status, to_client(headers), length, (whole,) if whole else (), _nothing)

    def finish(self, outcome: Outcome, code: str | None) -> None:
        """End the attempt; only the first call counts.

        `code` is the status, or what went wrong. None: no request was made, so none is counted in the metrics.
        """
        if self._finished:
            return
        self._finished = True
        route, shared, shared_id = self._target.route, self._target.shared, self.endpoint.shared_id
        shared.counters.remove(shared_id)
        ejected = shared.outliers.end(
            shared_id, outcome, trial=self._trial, peers=self._target.shared_ids, rules=route.ejection
        )
        if code is None:
            return
        shared.metrics.endpoint_requests(self.endpoint.url, code).inc()
        shared.metrics.upstream_seconds(route.name).observe(time.monotonic() - self._began)
        if ejected:
            _log.warning("endpoint ejected", endpoint=self.endpoint.url, model=route.name, reason=code)

    def _back_off(self, status: int, headers: Headers) -> None:
        """Let the endpoint back off if it asks for that.

        With the client's own credentials, a 429 is about that client and not about the endpoint.
        """
        seconds = None if status == 429 and self._target.route.forward_credentials else retry_after_s(headers)
        if seconds:
            self._target.shared.outliers.back_off(self.endpoint.shared_id, seconds)

    def _may_repeat(self, budget: RetryBudget) -> bool:
        if not budget.try_withdraw():
            return False
        self._target.shared.metrics.retries["stale_connection"].inc()
        return True

    def _observe_first_byte(self, at: float | None) -> None:
        """`at` is the time of the first byte of the body. None: there is no body, and its end counts."""
        seconds = (time.monotonic() if at is None else at) - self._began
        self._target.shared.metrics.first_byte_seconds(self._target.route.name).observe(seconds)

    def _whole(self, response: Response) -> bytes:
        try:
            whole = b"".join(response.body())
            self._observe_first_byte(response.first_byte_at)
        finally:
            response.close()
        return whole

    def _pieces(self, response: Response) -> Iterator[bytes]:
        try:
            body = response.body()
            first = next(body, None)
            self._observe_first_byte(response.first_byte_at)
            if first is not None:
                yield first
                yield from body
        except BaseException as error:
            self.finish(*_outcome_of(error))
            raise
        response.close()
        self.finish(*_outcome_of_status(response.head.status))

    def _abandon(self, response: Response) -> None:
        """Stop the response wherever it stands. Does nothing after its end."""
        response.close()
        self.finish(Outcome.ABANDONED, "499")


def _outcome_of_status(status: int) -> tuple[Outcome, str]:
    return Outcome.FAILURE if status in _FAILURES else Outcome.SUCCESS, str(status)


def _outcome_of(error: BaseException) -> tuple[Outcome, str]:
    if isinstance(error, UpstreamUnreachable) and error.not_tried:
        return Outcome.ABANDONED, error.code
    if isinstance(error, UpstreamError):
        return Outcome.FAILURE, error.code
    return Outcome.ABANDONED, "499" if isinstance(error, (ClientGone, GeneratorExit)) else "500"


def _nothing() -> None:
    """There is nothing left to close."""


def _encoded(call: Call, target: Target, endpoint: Endpoint) -> bytes:
    """Returns the bytes of the whole request, in the words of this endpoint."""
    path, body = call.path, call.body
    if call.adapter is not None:
        path, body = call.adapter.encode(call, target.upstream_model, target.upstream_version)
    fields = "\r\n".join(map(": ".join, call.headers))
    length = f"content-length: {len(body)}\r\n" if body or call.method != "GET" else ""
    head = f"{call.method} {endpoint.base_path}{path} HTTP/1.1\r\n{endpoint.head}{length}{fields}\r\n\r\n"
    return head.encode("latin-1") + body
