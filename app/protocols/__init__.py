"""Model servers: what the router asks of one, whether it is simulated here or stands behind an address."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from msgspec import UnsetType

Headers = list[tuple[str, str]]


class Inference(NamedTuple):
    """A request of `POST /infer`, which knows no protocol."""

    prompt: str
    options: dict[str, Any]
    """The other members of the request body, as the client gave them."""
    headers: Callable[[], Headers] = list
    """Makes the headers for a model server."""
    model: str | None = None
    """What the request calls the model, if it does."""
    key: bytes = b""
    version: str = ""
    """See Call."""


class Call(NamedTuple):
    """A request in the model server's own protocol, as it is passed on."""

    method: str
    path: str
    """Path under the model server's address, with the query: `/v1/chat/completions`, `/v2/models/m/infer`."""
    headers: Headers
    """End-to-end headers, names in lower case. Neither Host nor Content-Length is among them."""
    body: bytes = b""
    key: bytes = b""
    """What the model's balancing policy keeps together: requests of one key go to one endpoint. Empty: no key."""
    version: str = ""
    """The version of the model that must serve it; empty: any."""
    model: str = ""
    """What the request calls the model, if it does."""
    rename: Callable[[str, str | None], tuple[str, bytes]] | None = None
    """Path and body of the same call to a model of another name and version: "" for none, None for the same."""


class Reply(NamedTuple):
    """A model server's answer: its head, and its body as it comes."""

    status: int
    headers: Headers
    """End-to-end headers, names in lower case, without Content-Length."""
    length: int | None
    """Bytes of the body, or None when only its end will tell."""
    body: Iterable[bytes]
    """Pieces as they come, none empty. Raises UpstreamBroken or UpstreamTimeout when it breaks off."""
    close: Callable[[], None]
    """Stop, wherever it stands; must be called, may be called again."""


class Model(Protocol):
    """A model of the catalogue. Its calls run with a permit held and may be interrupted by `ClientGone`."""

    name: str

    def infer(self, request: Inference) -> Any | UnsetType:
        """Serve the request; answers the output, or UNSET from a model that has none."""

    def relay(self, call: Call) -> Reply:
        """Pass the call on and answer as soon as the head of the answer is there."""

    def unusable(self, version: str = "") -> str | None:
        """Why requests, of this version if one is given, can't be served now, or None when they can."""
