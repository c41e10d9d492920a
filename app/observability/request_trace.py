"""What a request tells its trace, and a trace takes from its request. otel.py has the traces."""

from typing import Protocol

from app.protocols.calls import RequestTrace


class TracedRequest(Protocol):
    """What a trace takes from its request at the end. Times are seconds."""

    route: str | None
    model: str
    status: int
    queue_s: float
    rejection: str | None

    @property
    def request_id(self) -> str:
        """The value of X-Request-Id."""


class Trace(RequestTrace, Protocol):
    """The trace of one request. Times are seconds of `monotonic()`."""

    trace_id: str

    def waited(self, began: float) -> None:
        """The request has waited in the queue since then."""

    def failed(self, code: str) -> None:
        """The response is an error of the router, with this code."""

    def generated(self, input_tokens: int | None, output_tokens: int | None, first_token_s: float | None) -> None:
        """So many tokens were taken and made. `first_token_s`: from the request's arrival to the first of a stream.

        Whatever counts tokens calls this before the end. What it does not know is None.
        """

    def end(self, request: TracedRequest) -> None:
        """The request is over, and nothing of it is in progress."""
