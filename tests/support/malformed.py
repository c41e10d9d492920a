"""Bytes that are no acceptable request, and the status each gets; names that no model may have."""

MALFORMED: dict[str, tuple[bytes, int]] = {
    "bare line feeds": (b"GET /healthz HTTP/1.1\nHost: x\n\n", 400),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "method in lower case": (b"get /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "negative length": (b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    "two lengths": (b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "length and chunks": (
        b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "long path": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "unknown expectation": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\n\r\n", 417),
    "long header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    "fragment": (b"GET /healthz#x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "user in the target": (b"GET http://user:pw@x/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "unknown coding": (b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: rot13\r\n\r\n", 501),
}

ODD_NAMES = [
    "a/../b",
    "a//b",
    "//a",
    "a/",
    "/../a",
    "./a",
    "../a",
    "a/.",
    "a/..",
    "/",
    "//",
    "a/./b",
    "org//m/x",
    "..",
    ".",
]
"""Names that other programs on the way take for another path."""
