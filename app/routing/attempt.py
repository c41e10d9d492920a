"""One attempt: one request to one endpoint, from the choice of the endpoint to the last byte of its response."""

from collections.abc import Iterator
from functools import partial
from itertools import chain

import structlog

from app.errors import ClientGone, RouterError, UpstreamError
from app.http_fields import Headers
from app.native import monotonic
from app.protocols.calls import AttemptTrace, BodyStream, Call, Reply
from app.routing.attempt_outcomes import broken, outcome_of
from app.routing.attempt_record import AttemptRecord
from app.routing.client_fault import MOST_BYTES, is_clients_fault
from app.routing.endpoint import Endpoint, Target
from app.routing.load_formats import ORCA_HEADER, orca_report
from app.routing.outlier_detection import Ended, Outcome
from app.routing.upstream_request import encoded
from app.upstream.headers import retry_after_s, to_client
from app.upstream.pool import Response
from app.upstream.response_head import Head

_READ_WHOLE_BYTES = 1 << 16
"""A response of up to this length is read before any of it is passed on: one write, and never half a response."""
_FAILURES = frozenset((500, 502, 503, 504))
_BACK_OFF_STATUSES = frozenset((401, 429, 503))
"""Statuses of an endpoint that others may spare their clients: it lacks a credential, a quota or room."""
_ACTED_ON = _BACK_OFF_STATUSES | {502}
"""After these the endpoint backs off or another one is tried, unless the text says that the request is at fault."""
_TEXT_WITHIN_S = 1.0
"""So long the text of such a response is waited for. A server that takes longer to say what is wrong is not heard."""
_ABOUT_CREDENTIAL = frozenset((401, 429))
"""Where clients use credentials of their own, these say nothing about the endpoint."""

_FAILED = Outcome.FAILURE  # a member of an enumeration is looked up by a call
_PERHAPS_FAILED = (_FAILED, Outcome.UNANSWERED)

_log = structlog.get_logger("router.endpoints")


class Attempt(AttemptRecord):
    """A request with one endpoint. It counts there from its making until `finish`."""

    __slots__ = (
        "_awaits_first_byte",
        "_began",
        "_contacted_at",
        "_error",
        "_error_text",
        "_finished",
        "_first_byte_us",
        "_target",
        "_trial",
        "endpoint",
        "is_clients_fault",
        "trace",
    )

    def __init__(self, target: Target, endpoint: Endpoint, trial: bool, seen: list[int]) -> None:
        """`seen`: what the endpoint was chosen among (candidates.py)."""
        self.pool = target.pool  # what an AttemptRecord has is set here: it is made for every request
        self.seen = seen
        self.code = ""
        self.endpoint_url = endpoint.url
        self.endpoint_hash = endpoint.url_hash
        self.took_s = 0.0
        self.endpoint = endpoint
        self._target = target
        self._trial = trial
        self._began = monotonic()
        self._contacted_at = 0.0  # not yet
        self._error_text = b""
        self._error = ""
        self._finished = False
        self._awaits_first_byte = True
        self._first_byte_us = 0
        self.is_clients_fault = False
        """Whether the response says that the request is at fault, so that it would fail elsewhere too."""
        self.trace: AttemptTrace | None = None

    def __repr__(self) -> str:
        state = "finished" if self._finished else "trial" if self._trial else "in progress"
        return f"<Attempt {self.endpoint.url} {state}>"

    def send(self, call: Call, deadline: float) -> Reply:
        """Send the call. Returns once the head of the response is there. Raises an UpstreamError."""
        try:
            request, rest = encoded(call, self._target, self.endpoint)
            timeouts = self._target.route.timeouts
            response = self.endpoint.connections.send(request, call.method, timeouts, deadline, self, rest, call.rest)
            if call.rest is not None and call.rest.ended_at:
                self._contacted_at = call.rest.ended_at  # what it took the client to send says nothing of the endpoint
            head = response.head
            status, headers, length = head.status, head.headers, head.length
            if self._target.reads_load:
                self._read_load(headers)
            serves = status < 300 and call.method == "POST" and not call.pinned
            self._awaits_first_byte = serves  # the head of a stream may come long before anything is generated
            if length is None or length > _READ_WHOLE_BYTES:
                body = response.body() if status < 400 else self._error_body(response)
                close = partial(self._abandon, response)
                pieces = self._pieces(response, body, serves)
                url, clients_fault, expect_end = self.endpoint.url, self.is_clients_fault, response.expect_end
                return Reply(status, to_client(headers), length, pieces, close, url, clients_fault, expect_end)
            whole = self._whole(response)
            if status >= 400:
                self._error_text = whole
                if self._acts_on(status):
                    self._act_on(response.head)
        except BaseException as error:
            self.finish(*self._outcome_of(error, call.rest))
            raise
        self.finish(*self._outcome_of_response(response.head))
        all_of_it = (whole,) if whole else ()
        return Reply(status, to_client(headers), length, all_of_it, _nothing, self.endpoint.url, self.is_clients_fault)

    def contacts_server(self) -> None:
        """See `Sender`."""
        self._contacted_at = monotonic()

    def may_repeat(self) -> bool:
        """See `Sender`. A request that is repeated is paid for by the retry budget."""
        if not self._target.budget.try_withdraw():
            return False
        self._target.shared.metrics.retries["stale_connection"].inc()
        if self.trace is not None:
            self.trace.repeated()
        return True

    def finish(self, outcome: Outcome, code: str | None) -> None:
        """End the attempt; only the first call counts.

        `code` is the status, or what went wrong. None: no request was made, so none is counted in the metrics.
        """
        if self._finished:
            return
        self._finished = True
        self.took_s = monotonic() - self._began
        self.code = code or ""
        route, shared, shared_id = self._target.route, self._target.shared, self.endpoint.shared_id
        try:
            ended = Ended(outcome, self._trial, int(self._contacted_at * 1000), self._first_byte_us)
            ejected = shared.outliers.end(shared_id, ended, self._target.rules)
            if (
                outcome in _PERHAPS_FAILED
                and not ejected
                and shared.outliers.fails_too_often(shared_id, self._target.rules)
            ):
                shared.back_offs.refused(self.endpoint.back_off, None)  # too many are out already: prefer others
            if outcome is _FAILED:
                shared.last_errors.record(shared_id, self._error or f"it responded with {code}")
        finally:
            # Last: as long as the attempt counts, its id is given to no other endpoint, so nothing of what it tells is
            # held against another one.
            shared.counters.remove(shared_id)
        if code is None:
            return
        if self.trace is not None:
            self.trace.ended(code)
        shared.metrics.endpoint_requests(self.endpoint.url, code).inc()
        shared.metrics.upstream_seconds(route.name).observe(self.took_s)
        if ejected:
            reason = "clients leave before the first byte" if outcome is Outcome.UNANSWERED else code
            _log.warning("endpoint ejected", endpoint=self.endpoint.url, model=route.name, reason=reason)

    def _back_off(self, status: int, headers: Headers) -> None:
        """Let the endpoint back off, unless the status is about the client's own credentials."""
        if not (status in _ABOUT_CREDENTIAL and self._target.route.forward_credentials):
            self._target.shared.back_offs.refused(self.endpoint.back_off, retry_after_s(headers))

    def _read_load(self, headers: Headers) -> None:
        """Record the load that a response reports."""
        for name, value in headers:
            if name == ORCA_HEADER and (load := orca_report(value)) is not None:
                self._target.shared.loads.record(self.endpoint.shared_id, load)

    def _first_byte(self, took_s: float) -> None:
        """Record that the endpoint serves: the first byte of a successful response to an inference request is there.

        `took_s` counts from when the endpoint was contacted.
        """
        self._awaits_first_byte = False
        self._first_byte_us = int(took_s * 1e6) or 1
        self._target.shared.back_offs.served(self.endpoint.back_off)

    def _observe_first_byte(self, at: float | None) -> None:
        """`at` is the time of the first byte of the body. None: there is no body, and its end counts."""
        at = monotonic() if at is None else at
        self._target.shared.metrics.first_byte_seconds(self._target.route.name).observe(at - self._began)
        if self.trace is not None:
            self.trace.first_byte(at)
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

    def _pieces(self, response: Response, body: Iterator[bytes], serves: bool) -> Iterator[bytes]:
        health = self._target.shared.health
        try:
            first = next(body, None)
            self._observe_first_byte(response.first_byte_at)
            for piece in body if first is None else chain((first,), body):
                if serves:
                    health.served(self.endpoint.shared_id)
                yield piece
        except (ClientGone, GeneratorExit):
            raise  # `_abandon` follows
        except BaseException as error:
            whole = response.is_whole  # nothing has failed then: the rest is read for the connection's sake alone
            self.finish(*(self._outcome_of_response(response.head) if whole else self._outcome_of(error)))
            if not (whole and isinstance(error, RouterError)):
                raise  # also what a drain throws to end the greenlet
        response.close()
        self.finish(*self._outcome_of_response(response.head))

    def _error_body(self, response: Response) -> Iterator[bytes]:
        """Returns the body of an error. Its beginning is noted as it comes, or now if it is acted on."""
        body = self._noting(response.body())
        if self._acts_on(response.head.status):
            if self._target.route.ejection.ignored_texts:
                body = self._with_beginning(response, body)
            self._act_on(response.head)
        return body

    def _acts_on(self, status: int) -> bool:
        """Whether it matters whose fault an error of this status is. Any 5xx may be a reason to use another model."""
        return status in _ACTED_ON or (status >= 500 and bool(self._target.route.fallback))

    def _noting(self, body: Iterator[bytes]) -> Iterator[bytes]:
        for piece in body:
            if len(self._error_text) < MOST_BYTES:
                self._error_text += piece
            yield piece

    def _with_beginning(self, response: Response, body: Iterator[bytes]) -> Iterator[bytes]:
        """Returns the body again, after its beginning was read."""
        pieces = []
        deadline = monotonic() + _TEXT_WITHIN_S
        try:
            while len(self._error_text) < MOST_BYTES and response.has_more_within(deadline - monotonic()):
                piece = next(body, None)
                if piece is None:
                    break
                pieces.append(piece)
        except UpstreamError as error:
            body = broken(error)  # for the client, if the request is not retried
        except BaseException:
            response.close()
            raise
        return chain(pieces, body)

    def _act_on(self, head: Head) -> None:
        """Note whose fault an error is, and let the endpoint back off if it is its own."""
        self.is_clients_fault = self._blames_request(head)
        if head.status in _BACK_OFF_STATUSES and not self.is_clients_fault:
            self._target.shared.last_errors.record(self.endpoint.shared_id, f"it responded with {head.status}")
            self._back_off(head.status, head.headers)

    def _abandon(self, response: Response) -> None:
        """Stop the response wherever it stands. Does nothing after its end."""
        response.close()
        if response.head.status >= 400 or response.is_whole:  # before the client left, or a retry
            self.finish(*self._outcome_of_response(response.head))
        else:
            self.finish(self._outcome_of_leaving(), "499")

    def _outcome_of_response(self, head: Head) -> tuple[Outcome, str]:
        status = head.status
        failed = (
            status in _FAILURES
            and status not in self._target.route.ejection.ignored_statuses
            and not self._blames_request(head)
        )
        return Outcome.FAILURE if failed else Outcome.SUCCESS, str(status)

    def _blames_request(self, head: Head) -> bool:
        """Whether the text of an error, as far as it has come, says that the request is at fault."""
        return is_clients_fault(head.headers, self._error_text, self._target.route.ejection.ignored_texts)

    def _outcome_of(self, error: BaseException, rest: BodyStream | None = None) -> tuple[Outcome, str]:
        """`rest`: the part of the request that was still arriving when it was sent."""
        self._error = str(error) if isinstance(error, UpstreamError) else ""
        return outcome_of(error, self._outcome_of_leaving(), rest)

    def _outcome_of_leaving(self) -> Outcome:
        """Returns the outcome of an attempt whose client leaves now."""
        return Outcome.UNANSWERED if self._awaits_first_byte else Outcome.ABANDONED


def _nothing() -> None:
    """There is nothing left to close."""
