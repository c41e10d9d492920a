"""The head of a model server's response (RFC 9112): its fields, and how its body ends.

Nothing is guessed. A head that does not match the grammar, two lengths that differ, and a length beside chunks are all
UpstreamBroken, because another reader might see the end of the body elsewhere.

A minor version above HTTP/1.1 is read as HTTP/1.1 (RFC 9110 section 2.5); any other major version is broken.
"""

import re

from app.errors import UpstreamBroken
from app.http_fields import FIELD_VALUE, Headers
from app.native import split_response

_END = b"\r\n\r\n"
MAX_BYTES = 1 << 16
_STATUS_LINE = re.compile(rf"HTTP/1\.[0-9] [1-5]\d\d(?: {FIELD_VALUE})?(?:\r\n|\Z)".encode())
_LENGTH = re.compile(r"[0-9]{1,18}")


class Head:
    """The head of a response."""

    __slots__ = ("chunked", "headers", "keep", "length", "status")

    def __init__(self, status: int, headers: Headers, length: int | None, chunked: bool, keep: bool) -> None:
        self.status = status
        self.headers = headers
        """In order, names in lower case."""
        self.length = length
        """Bytes of the body, or None when only its end will tell."""
        self.chunked = chunked
        self.keep = keep
        """Whether the connection may serve another request after this response."""


class HeadReader:
    """Returns the head of the final response out of the pieces that it is fed; interim ones (1xx) are skipped.

    The work is linear in the number of bytes, however they are cut: none is copied or searched again for each piece.
    """

    __slots__ = ("_buffer", "_interim_bytes", "_method", "begun", "heard", "rest")

    def __init__(self, method: str) -> None:
        self._method = method
        self._buffer: bytearray | None = None  # made for what does not come in one piece
        self._interim_bytes = 0
        self.heard = False
        """Whether anything came at all."""
        self.begun = False
        """Whether a part of a head is there."""
        self.rest = b""
        """The bytes that follow the head."""

    def feed(self, data: bytes) -> Head | None:
        """Returns the head once it is complete. Raises UpstreamBroken."""
        self.heard = True
        if self._buffer is None:
            end = data.find(_END)
            if 0 <= end <= MAX_BYTES:  # nearly always: the whole head in one piece
                head = parse_head(data[:end], self._method)
                if head.status >= 200:
                    self.rest = data[end + len(_END) :]
                    return head
            self._buffer = bytearray()
        return self._continue(self._buffer, data)

    def _continue(self, buffer: bytearray, data: bytes) -> Head | None:
        begin, search = 0, max(0, len(buffer) - len(_END) + 1)
        buffer += data
        while (end := buffer.find(_END, search)) >= 0 and end - begin <= MAX_BYTES:
            head = parse_head(bytes(buffer[begin:end]), self._method)
            after = end + len(_END)
            if head.status >= 200:
                self.rest = bytes(buffer[after:])
                return head
            self._skip(head, after - begin)
            begin = search = after
        if end >= 0 or len(buffer) - begin - len(_END) >= MAX_BYTES:
            raise UpstreamBroken(f"the head of the response is longer than {MAX_BYTES} bytes")
        del buffer[:begin]
        self.begun = bool(buffer)
        return None

    def _skip(self, head: Head, size: int) -> None:
        """After 100 Continue or 103 Early Hints the response is still to come."""
        if head.status == 101:
            raise UpstreamBroken("it switched protocols without a request to do so")
        self._interim_bytes += size
        if self._interim_bytes > MAX_BYTES:
            raise UpstreamBroken(f"the interim responses (1xx) are longer than {MAX_BYTES} bytes together")


def parse_head(data: bytes, method: str) -> Head:
    """Parse the head of the response to a request of this method, without the empty line. Raises UpstreamBroken."""
    found = split_response(data)
    if found is None:
        is_http = _STATUS_LINE.match(data)
        raise UpstreamBroken("a header of the response is malformed" if is_http else "the response is not HTTP/1.1")
    minor, status, headers = found
    http_1_0 = minor == 0
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
