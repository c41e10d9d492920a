"""The default form of an error: a problem document (RFC 9457).

Members: `type` (about:blank: the title is the status phrase, as the RFC has it), `title`, `status`, `detail` for
people, and `code`, a stable word for programs.
"""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from msgspec import UNSET, UnsetType

CONTENT_TYPE = "application/problem+json"
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",  # new in RFC 9110, as are the next ones
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


class Problem(msgspec.Struct):
    """The document's members, in order; further ones follow."""

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"
    error: str | UnsetType = UNSET
    """The detail once more, for a protocol whose clients look for it there."""


NO_MORE: Mapping[str, object] = {}


def document(  # noqa: PLR0913, PLR0917  # its members
    title: str,
    status: int,
    detail: str,
    code: str,
    error: str | UnsetType = UNSET,
    more: Mapping[str, object] = NO_MORE,
) -> bytes:
    """Returns the document as JSON. `more`: extension members (RFC 9457 section 3.2)."""
    problem = Problem(title, status, detail, code, error=error)
    return msgspec.json.encode({**msgspec.to_builtins(problem), **more} if more else problem)


def error_body(status: int, code: str, detail: str, more: Mapping[str, object] = NO_MORE, /) -> tuple[str, bytes]:
    """Returns content type and body of an error outside all protocols; the same as `ProtocolAdapter.error_body`."""
    return CONTENT_TYPE, document(phrase(status), status, detail, code, more=more)


def phrase(status: int) -> str:
    """Returns the reason phrase of a status (RFC 9110); of a code of a model server's own, "Unknown"."""
    return _PHRASES.get(status, "Unknown")
