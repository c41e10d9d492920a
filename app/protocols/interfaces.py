"""What an adapter of a wire format offers, and what it makes of a client's request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

from msgspec import Raw

from app.http_fields import Headers
from app.protocols.calls import Attempts, BodyStream, Call, Model, Reply
from app.protocols.json_body import as_json

VERSION_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""The pattern of a version's name: it may become a part of a path."""


class ClientRequest:
    """What a parser sees of a client's request."""

    __slots__ = ("body", "form", "header", "operation", "params", "query")

    def __init__(  # noqa: PLR0913, PLR0917  # it is made for every request: a NamedTuple takes twice as long
        self,
        operation: "Operation",
        params: Mapping[str, str],
        query: str,
        header: Callable[[str], str | None],
        body: bytes,
        form: "FormHead | None" = None,
    ) -> None:
        self.operation = operation
        self.params = params
        """The fields of the URI template that matched."""
        self.query = query
        """Without the question mark; empty: none."""
        self.header = header
        """Returns the value of a header, or None."""
        self.body = body
        self.form = form
        """What is known of a form, of which `body` is the beginning."""


class FormHead(NamedTuple):
    """What is known of a form once its field `model` has come."""

    model: str
    begin: int
    """Index in the body at which the name begins."""
    end: int
    rest: BodyStream | None
    """None: all of the form is there."""


class ParsedRequest(Protocol):
    """A client's request, read as far as the router has to understand it."""

    @property
    def model(self) -> str | None:
        """The model that the request names, if it names one."""

    @property
    def version(self) -> str:
        """The version of the model that the request names, or empty."""

    def prompt(self) -> Sequence[bytes | memoryview]:
        """Returns the prompt as it was written, in parts; equal prompts have equal parts. Raises InvalidRequest."""

    def send(self, model: Model, headers: Callable[[], Headers], key: bytes, version: str, attempts: Attempts) -> Reply:
        """Send the request to the model; returns what the client is to receive. See Call for the others."""


class ErrorBody(Protocol):
    """Makes the body of an error, in the form of a protocol."""

    def __call__(self, status: int, code: str, detail: str, more: Mapping[str, object] = ..., /) -> tuple[str, bytes]:
        """Returns content type and body. `more`: further members for programs, beside the code."""


class Kind(Enum):
    """How the router handles an operation."""

    ORDINARY = auto()
    FORM = auto()
    """The body is a form that is passed on while it arrives."""
    CREATES_RESPONSE = auto()
    """What it creates has an id, under which later requests refer to it. It may itself refer to such a response."""
    ABOUT_RESPONSE = auto()
    """It is about an earlier response, whose id is the field `response_id` of the template."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One request that clients may make, at one path or at several of the same meaning."""

    method: str
    templates: tuple[str, ...]
    """URI templates as Falcon has them."""
    route: str
    """The label in metrics; not made of anything that a client chooses."""
    parse: Callable[[ClientRequest], ParsedRequest]
    """Raises InvalidRequest or ModelNotFound."""
    has_body: bool = True
    kind: Kind = Kind.ORDINARY
    error_body: ErrorBody | None = None
    """The form of errors here and below this path, where it is not that of the protocol."""
    only_listed: bool = False
    """Whether it is served only for the models whose route lists the path."""
    about_model: bool = False
    """Whether its response holds for this model only, so that no other model may serve it."""


class ProtocolAdapter(NamedTuple):
    """A wire format. All functions are pure."""

    name: str
    """The protocol's name in a routes file."""
    root: str
    """All paths of the protocol lie below this one: `/v1`."""
    title: str
    """The protocol's name in messages for people."""
    operations: tuple[Operation, ...]
    encode: Callable[[Call, str, str | None], tuple[str, Sequence[bytes | memoryview]]]
    """Takes a call, a model and a version ("": none; None: that of the call); returns the path, and the body in parts.

    The parts are not joined, because a body may be megabytes. Where nothing changes, path and body are the call's own,
    byte by byte. Raises InvalidRequest.
    """
    prompt_member: str
    """The member of a request body that takes the prompt of /infer."""
    infer_call: Callable[[str, Raw], tuple[str, Sequence[bytes]]]
    """Takes a model and a prompt; returns the path of the POST that puts it to the model, and the value of
    `prompt_member` in parts, none of them a copy of the prompt."""
    output: Callable[[bytes], Raw]
    """Takes the response to `infer_call`, returns its output as written. Raises MalformedJson."""
    health_path: str
    """The path at which a model server is checked, unless its route says otherwise."""
    error_body: ErrorBody


class ParsedCall:
    """The `ParsedRequest` of an adapter's operation: the client's own bytes, to be passed on."""

    __slots__ = (
        "adapter",
        "body",
        "endpoint",
        "is_json",
        "method",
        "model",
        "model_as_written",
        "path",
        "pinned",
        "prompt",
        "refers_to",
        "rest",
        "version",
    )

    def __init__(  # noqa: PLR0913, PLR0917  # see ClientRequest
        self,
        adapter: ProtocolAdapter | None,
        method: str,
        path: str,
        body: bytes,
        model: str | None,
        prompt: Callable[[], Sequence[bytes | memoryview]],
        version: str = "",
        model_as_written: Raw | memoryview | None = None,
        *,
        is_json: bool = False,
        rest: BodyStream | None = None,
        refers_to: str = "",
    ) -> None:
        self.adapter = adapter
        """See Call, for what has no word here."""
        self.method = method
        self.path = path
        self.body = body
        self.model = model
        self.prompt = prompt
        self.version = version
        self.model_as_written = model_as_written
        self.is_json = is_json
        """Whether the body was read as JSON, whatever its declared type."""
        self.rest = rest
        self.refers_to = refers_to
        """Id of the earlier response that the request is about or continues; empty: none."""
        self.endpoint = 0
        self.pinned = False

    def send(self, model: Model, headers: Callable[[], Headers], key: bytes, version: str, attempts: Attempts) -> Reply:
        """See ParsedRequest."""
        passed = as_json(headers()) if self.is_json else headers()
        call = Call(
            self.method,
            self.path,
            passed,
            self.body,
            key,
            version,
            self.model or "",
            self.model_as_written,
            self.adapter,
            self.rest,
            self.endpoint,
            self.pinned,
            attempts,
        )
        return model.relay(call)
