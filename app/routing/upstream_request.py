"""A call as the bytes of a request to an endpoint."""

from collections.abc import Sequence
from typing import Any

from app.protocols.calls import BodyStream, Call
from app.routing.endpoint import Endpoint, Target

_JOINED_BYTES = 1 << 16
"""A request with a body of up to this length is sent by one call."""


def encoded(call: Call, target: Target, endpoint: Endpoint) -> tuple[bytes, Sequence[bytes | memoryview]]:
    """Returns the bytes of the whole request, in the words of this endpoint: the first part, and what follows."""
    path: str = call.path
    body: Sequence[bytes | memoryview] = (call.body,)
    if call.adapter is not None:
        path, body = call.adapter.encode(call, target.upstream_model, target.upstream_version)
    size = sum(map(len, body))
    fields = "\r\n".join([f"{name}: {value}" for name, value in call.headers])
    length = f"content-length: {size}\r\n" if size or call.method != "GET" else ""
    if call.rest is not None:
        length, body = _streamed(call.rest, size, body)
    head = f"{call.method} {endpoint.base_path}{path} HTTP/1.1\r\n{endpoint.head}{length}{fields}\r\n\r\n"
    if size > _JOINED_BYTES:
        return head.encode("latin-1"), body
    return b"".join((head.encode("latin-1"), *body)), ()


def _streamed(rest: BodyStream, size: int, begun: Sequence[bytes | memoryview]) -> tuple[str, Sequence[Any]]:
    """Returns the field that says how a body ends of which `size` bytes are there, and those bytes in its framing."""
    if rest.length is not None:
        return f"content-length: {size + rest.length}\r\n", begun
    return "transfer-encoding: chunked\r\n", (b"%x\r\n" % size, *begun, b"\r\n")
