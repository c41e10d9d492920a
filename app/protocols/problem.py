"""The default form of an error: a problem document (RFC 9457).

Members: `type` (about:blank: the title is the status phrase, as the RFC has it), `title`, `status`, `detail` for
people, and `code`, a stable word for programs.
"""

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
    """The document's members, in order."""

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"
    error: str | UnsetType = UNSET
    """The detail once more, for a protocol whose clients look for it there."""


def document(title: str, status: int, detail: str, code: str, error: str | UnsetType = UNSET) -> bytes:
    """Returns the document as JSON."""
    return msgspec.json.encode(Problem(title, status, detail, code, error=error))


def error_body(status: int, code: str, detail: str) -> tuple[str, bytes]:
    """Returns content type and body of an error outside all protocols; the same as `ProtocolAdapter.error_body`."""
    return CONTENT_TYPE, document(phrase(status), status, detail, code)


def phrase(status: int) -> str:
    """Returns the reason phrase of a status (RFC 9110); of a code of a model server's own, "Unknown"."""
    return _PHRASES.get(status, "Unknown")
