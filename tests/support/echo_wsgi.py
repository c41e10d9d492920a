"""A WSGI application that answers what it saw, for tests of what stands in front of it (test_equivalence.py).

Most paths answer a JSON document with a Content-Length. The paths below answer in other ways; the document is in their
`X-Saw` then, so that nothing of it is lost.
"""

import _socket  # gevent replaces what the module `socket` has
import array
import base64
import fcntl
import json
import os
import termios
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PENDING_DIGITS = 12
"""The length of what /pending returns."""

_Start = Callable[..., Callable[[bytes], object]]
_Environ = dict[str, Any]
_Headers = list[tuple[str, str]]


def application(environ: _Environ, start: _Start) -> Iterable[bytes]:
    """Answers by path."""
    answer = _ANSWERS.get(environ["PATH_INFO"])
    if answer is None:
        saw = document(environ, environ["wsgi.input"].read())
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(saw))), *_method(environ)])
        return [saw]
    return answer(environ, start)


def document(environ: _Environ, body: bytes) -> bytes:
    """What the application was given. Ports and the like, which differ from run to run, are left out."""
    names = (
        *("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "RAW_URI", "SCRIPT_NAME", "SERVER_PROTOCOL", "REMOTE_ADDR"),
        *("SERVER_NAME", "wsgi.url_scheme", "wsgi.multithread", "wsgi.multiprocess", "wsgi.version"),
    )
    saw = {name: environ.get(name) for name in names}
    saw |= {name: value for name, value in environ.items() if name.startswith(("HTTP_", "CONTENT_", "router."))}
    return json.dumps({**saw, "body": base64.b64encode(body).decode()}, sort_keys=True).encode()


def _method(environ: _Environ) -> _Headers:
    """So that a client of pipelined requests knows which answers have no body."""
    return [("X-Method", environ["REQUEST_METHOD"])]


def _saw(environ: _Environ, body: bytes | None = None) -> _Headers:
    saw = document(environ, environ["wsgi.input"].read() if body is None else body)
    return [("X-Saw", saw.decode()), *_method(environ)]


def _chunked(environ: _Environ, start: _Start) -> Iterator[bytes]:
    start("200 OK", _saw(environ))
    yield b"one"
    yield b""
    yield b"t" * 20
    yield b"three"


def _chunked_empty(environ: _Environ, start: _Start) -> list[bytes]:
    start("200 OK", _saw(environ))
    return []


def _no_content(environ: _Environ, start: _Start) -> list[bytes]:
    start("204 No Content", _saw(environ))
    return []


def _not_modified(environ: _Environ, start: _Start) -> list[bytes]:
    start("304 Not Modified", [*_saw(environ), ("ETag", '"x"')])
    return [b"dropped"]


def _unread(environ: _Environ, start: _Start) -> list[bytes]:
    start("413 Content Too Large", [*_saw(environ, b""), ("Content-Length", "6")])
    return [b"unread"]


def _part(environ: _Environ, start: _Start) -> list[bytes]:
    start("200 OK", [*_saw(environ, environ["wsgi.input"].read(3)), ("Content-Length", "4")])
    return [b"part"]


def _in_steps(environ: _Environ, start: _Start) -> list[bytes]:
    steps = list(iter(lambda: environ["wsgi.input"].read(3), b""))
    start("200 OK", [*_saw(environ, b"|".join(steps)), ("Content-Length", "5")])
    return [b"steps"]


def _late(environ: _Environ, start: _Start) -> Iterator[bytes]:
    """The body is read when the head is out."""
    start("200 OK", _method(environ))
    yield b"before"
    yield document(environ, environ["wsgi.input"].read())


def _too_long(environ: _Environ, start: _Start) -> list[bytes]:
    start("200 OK", [*_saw(environ), ("Content-Length", "5")])
    return [b"abc", b"defgh", b"i"]


def _empty(environ: _Environ, start: _Start) -> list[bytes]:
    start("200 OK", [*_saw(environ), ("Content-Length", "0")])
    return []


def _pending(environ: _Environ, start: _Start) -> list[bytes]:
    """How many bytes the kernel holds that connected clients have sent and this process has yet to read."""
    count = array.array("i", [0])
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            sock = _socket.socket(fileno=int(name))
        except OSError:
            continue  # no socket
        try:
            sock.getpeername()  # fails for a listener, and for a connection that its client has reset
            fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
            total += count[0]
        except OSError:
            pass
        finally:
            sock.detach()
    content = b"%0*d" % (PENDING_DIGITS, total)
    start("200 OK", [("Content-Length", str(len(content)))])
    return [content]


def _written(environ: _Environ, start: _Start) -> list[bytes]:
    write = start("200 OK", [*_saw(environ), ("Content-Length", "7")])
    write(b"wri")
    return [b"tten"]


def _fails(environ: _Environ, start: _Start) -> list[bytes]:
    raise RuntimeError("the application was told to fail")


def _fails_late(environ: _Environ, start: _Start) -> Iterator[bytes]:
    start("200 OK", _saw(environ))
    yield b"begun"
    raise RuntimeError("the application was told to fail late")


_ANSWERS: dict[str, Callable[[_Environ, _Start], Iterable[bytes]]] = {
    "/chunked": _chunked,
    "/chunked-empty": _chunked_empty,
    "/204": _no_content,
    "/304": _not_modified,
    "/unread": _unread,
    "/part": _part,
    "/steps": _in_steps,
    "/late": _late,
    "/too-long": _too_long,
    "/empty": _empty,
    "/pending": _pending,
    "/written": _written,
    "/fails": _fails,
    "/fails-late": _fails_late,
}
