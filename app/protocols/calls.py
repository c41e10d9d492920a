"""The calls that adapters make and models serve, and the replies of models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from msgspec import Raw, UnsetType

from app.http_fields import Headers

Attempts: TypeAlias = list[Any]
"""Every choice of an endpoint for a request, in order, for the record of the request. Whoever chooses appends.

This package does not know what they are: see routing/attempt.py.
"""


class Inference(NamedTuple):
    """A request of `POST /infer`, which belongs to no protocol."""

    prompt: Raw
    """A JSON string, as the client wrote it."""
    body: bytes
    members: Mapping[str, Raw]
    """The members of the body that are not passed on as they are, or may take the place of the prompt."""
    headers: Callable[[], Headers] = list
    """Makes the headers for a model server."""
    model: str | None = None
    """The model that the request names, if it names one."""
    key: bytes = b""
    version: str = ""
    """See Call."""
    attempts: Attempts | None = None
    """See Call."""


class BodyStream(Protocol):
    """The rest of a request body, which is still arriving and is passed on as it comes."""

    length: int | None
    """Bytes that are still to come, or None when only its end will tell: then it comes framed as chunks."""
    begun: bool
    """Whether any of it was taken, so that the request can't be sent again."""
    ended_at: float
    """When its end was taken, in seconds of time.monotonic(); 0: it was not yet."""

    def receive(self, other: int, within_s: float) -> bytes | None:
        """Returns the next bytes, b"" at the end; None if descriptor `other` is readable first, or the time is over.

        Raises what `read` raises.
        """

    def read(self) -> bytes:
        """Returns the next bytes without a framing, b"" at the end. Waits as long as the client may take.

        Raises InvalidRequest, BodyTooLarge or BodyStalled, or ClientGone if the body ends early.
        """


class Encoder(Protocol):
    """What puts another model's name into a call: a `ProtocolAdapter`."""

    @property
    def name(self) -> str:
        """See ProtocolAdapter."""

    @property
    def encode(self) -> "Callable[[Call, str, str | None], tuple[str, Sequence[bytes | memoryview]]]":
        """See ProtocolAdapter."""


class Call:
    """A request in the model server's own protocol, as it is passed on."""

    __slots__ = (
        "adapter",
        "attempts",
        "body",
        "endpoint",
        "headers",
        "key",
        "method",
        "model",
        "model_as_written",
        "path",
        "pinned",
        "rest",
        "version",
    )

    def __init__(  # noqa: PLR0913, PLR0917  # a record
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes = b"",
        key: bytes = b"",
        version: str = "",
        model: str = "",
        model_as_written: Raw | memoryview | None = None,
        adapter: Encoder | None = None,
        rest: BodyStream | None = None,
        endpoint: int = 0,
        pinned: bool = False,
        attempts: Attempts | None = None,
    ) -> None:
        self.method = method
        self.path = path
        """Path under the model server's address, with the query: `/v1/chat/completions`, `/v2/models/m/infer`."""
        self.headers = headers
        """End-to-end headers, names in lower case. Neither Host nor Content-Length is among them."""
        self.body = body
        self.key = key
        """What the model's balancing policy keeps together: requests of one key go to one endpoint. Empty: no key."""
        self.version = version
        """The version of the model that must serve it; empty: any."""
        self.model = model
        """The model that path or body name; empty: none."""
        self.model_as_written = model_as_written
        """The name as the body has it: a view of the body. None if the body names no model."""
        self.adapter = adapter
        """Puts another model's name in; None if there is nothing to put in."""
        self.rest = rest
        """What follows `body`; None: all of the body is there."""
        self.endpoint = endpoint
        """Hash of the URL of the endpoint that is preferred; 0: none is. No other one is tried after its response."""
        self.pinned = pinned
        """Whether no endpoint but that one can serve the call."""
        self.attempts = [] if attempts is None else attempts
        """Every choice of an endpoint for the call is appended."""


def _nothing() -> None:
    """Nothing depends on the end of the body."""


class Reply:
    """The response of a model server: its head, and its body as it comes."""

    __slots__ = ("body", "close", "endpoint", "expect_end", "headers", "is_clients_fault", "length", "status")

    def __init__(  # noqa: PLR0913, PLR0917  # a record
        self,
        status: int,
        headers: Headers,
        length: int | None,
        body: Iterable[bytes],
        close: Callable[[], None],
        endpoint: str = "",
        is_clients_fault: bool = False,
        expect_end: Callable[[], None] = _nothing,
    ) -> None:
        self.status = status
        self.headers = headers
        """End-to-end headers, names in lower case, without Content-Length."""
        self.length = length
        """Bytes of the body, or None when only its end will tell."""
        self.body = body
        """Pieces as they come, none empty. Raises UpstreamBroken or UpstreamTimeout when it breaks off."""
        self.close = close
        """Stops it at any point; must be called, may be called again."""
        self.endpoint = endpoint
        """URL of the endpoint that made it; empty: a model without endpoints did."""
        self.is_clients_fault = is_clients_fault
        """Whether the text of an error says that the request is at fault, so that another model would fail too."""
        self.expect_end = expect_end
        """To be called when the event that ends a stream has come: the body must end soon, and has not failed then."""


class AttemptTrace(Protocol):
    """The trace of one attempt. Times are seconds of `monotonic()`."""

    def first_byte(self, at: float) -> None:
        """The first byte of the response's body came."""

    def repeated(self) -> None:
        """The request is sent again to the same endpoint: the kept connection had been closed."""

    def ended(self, code: str) -> None:
        """The attempt is over. `code` is the status, or what went wrong."""


class RequestTrace(Protocol):
    """The trace of one request."""

    def attempt(self, model: str, url: str, call: Call) -> AttemptTrace:
        """Begin an attempt at this endpoint. Its context replaces the one that the call's headers have."""

    def generated(self, input_tokens: int | None, output_tokens: int | None, first_token_s: float | None) -> None:
        """So many tokens were taken and made, the first after this time. What is not known is None."""


class Model(Protocol):
    """A model of the registry. Its calls run with a permit held and may be interrupted by `ClientGone`."""

    name: str

    def under(self, deadline: float, trace: RequestTrace | None) -> "Model":
        """Returns the same model for one request, which ends by `deadline` and whose attempts are traced.

        `deadline` is a time of `monotonic()`, or infinity where the model's own timeouts are enough.
        """

    def infer(self, request: Inference) -> Raw | UnsetType:
        """Serve the request; returns the output as JSON, or UNSET from a model that has none."""

    def relay(self, call: Call) -> Reply:
        """Pass the call on; returns as soon as the head of the response is there."""

    def unusable(self, version: str = "") -> str | None:
        """Returns why requests, of this version if one is given, can't be served now, or None when they can."""
