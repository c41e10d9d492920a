"""A problem document (RFC 9457), whoever answers with it.

Members: `type` (about:blank: the title is the status phrase, as the RFC has it), `title`, `status`, `detail` for
people, and `code`, a stable word for programs.
"""

import msgspec

CONTENT_TYPE = "application/problem+json"


class Problem(msgspec.Struct):
    """The document's members, in order."""

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"


def document(title: str, status: int, detail: str, code: str) -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(Problem(title, status, detail, code))
