"""The forms of an error: a problem document (RFC 9457), or OpenAI's error object.

Members: `type` (about:blank: the title is the status phrase, as the RFC has it), `title`, `status`, `detail` for
people, and `code`, a stable word for programs.
"""

from http import HTTPStatus

import msgspec
from msgspec import UNSET, UnsetType

CONTENT_TYPE = "application/problem+json"


class Problem(msgspec.Struct):
    """The document's members, in order."""

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"
    error: str | UnsetType = UNSET
    """For clients that look for the reason there (Open Inference Protocol v2)."""


def document(title: str, status: int, detail: str, code: str, error: str | UnsetType = UNSET) -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(Problem(title, status, detail, code, error=error))


def openai_error(status: int, detail: str, code: str) -> bytes:
    """The object that OpenAI's clients expect, as JSON."""
    kind = "invalid_request_error" if status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS else "server_error"
    return msgspec.json.encode({"error": {"message": detail, "type": kind, "param": None, "code": code}})


def phrase(status: int) -> str:
    """What a status is called (RFC 9110)."""
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return "Content Too Large"
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # a code of a model server's own
        return "Unknown"
