"""The head of a model server's response (RFC 9112): its fields, and how its body ends.

Nothing is guessed. A head that does not match the grammar, two lengths that differ, and a length beside chunks are all
UpstreamBroken, because another reader might see the end of the body elsewhere.
"""

import re
from typing import NamedTuple

from app.errors import UpstreamBroken
from app.net.http_fields import FIELD_VALUE, FIELDS, Headers

END = b"\r\n\r\n"
"""What follows the last field."""
_STATUS_LINE = rb"HTTP/1\.([01]) ([1-5]\d\d)(?: " + FIELD_VALUE.encode() + rb")?"
_HEAD = re.compile(_STATUS_LINE + b"(" + FIELDS.encode() + b")")
_FIELD = re.compile(r"\r\n([^:]+):([^\r]*)")
_LENGTH = re.compile(r"[0-9]{1,18}")


class Head(NamedTuple):
    """The head of a response."""

    status: int
    headers: Headers
    """In order, names in lower case."""
    length: int | None
    """Bytes of the body, or None when only its end will tell."""
    chunked: bool
    keep: bool
    """Whether the connection may serve another request after this response."""


def parse_head(data: bytes, method: str) -> Head:
    """Parse the head, without END, of the response to a request of this method. Raises UpstreamBroken."""
    found = _HEAD.fullmatch(data)
    if found is None:
        is_http = re.match(_STATUS_LINE + rb"(\r\n|\Z)", data)
        raise UpstreamBroken("a header of the response is malformed" if is_http else "the response is not HTTP/1.1")
    minor, code, block = found.groups()
    status, http_1_0 = int(code), minor == b"0"
    headers = [(name.lower(), value.strip(" \t")) for name, value in _FIELD.findall(block.decode("latin-1"))]
    said = dict(headers)
    if len(said) < len(headers):
        said = _joined(headers)
    keep = _keeps(said["connection"], http_1_0) if "connection" in said else not http_1_0
    length, coding = said.get("content-length"), said.get("transfer-encoding")
    # How the body ends: RFC 9112 section 6.3.
    if method == "HEAD" or status in (204, 304):
        return Head(status, headers, 0, False, keep)
    if coding is not None:
        if coding.lower() != "chunked" or length is not None or http_1_0:
            raise UpstreamBroken("the response's Transfer-Encoding is not just `chunked`, or a length is there too")
        return Head(status, headers, None, True, keep)
    if length is None:
        return Head(status, headers, None, False, False)
    if not _LENGTH.fullmatch(length):
        raise UpstreamBroken("the response's Content-Length is not a number, or there are two")
    return Head(status, headers, int(length), False, keep)


def _joined(headers: Headers) -> dict[str, str]:
    """Join the values of fields of one name to a list (RFC 9110 section 5.3). Equal lengths become one."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(value)
    if len(set(values.get("content-length", ()))) == 1:
        del values["content-length"][1:]
    return {name: ", ".join(those) for name, those in values.items()}


def _keeps(connection: str, http_1_0: bool) -> bool:
    """Whether a Connection field keeps the connection open."""
    options = [option.strip() for option in connection.lower().split(",")]
    return "close" not in options and (not http_1_0 or "keep-alive" in options)
