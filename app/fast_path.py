"""The fast path: an ordinary request is read with one match, and its answer written with one call.

Rules:
- **Ordinary** is what `_HEAD` matches from the first byte to the blank line, all of it there at once: GET, HEAD
  or POST, a path, HTTP/1.1, each header field on one line, no field twice, none of `_UNUSUAL`, Connection absent or
  `keep-alive` or `close`, and no Content-Length but a plain number.
- **Everything else is gunicorn's.** `parse` answers None, and its strict parser gets the very bytes. So nothing is
  decided here about malformed input, and nothing that is refused there is accepted here: what `_HEAD` matches is a
  subset of what that parser takes, and is given the same meaning (tests/e2e/test_equivalence.py compares the two).
- gunicorn's limits hold: whatever is longer than the smallest of them is left to it. So are hooks, TLS, the PROXY
  protocol, Unix sockets, and forwarded schemes from peers that it trusts.

What this buys is measured in docs/performance.md. gunicorn_h1c, its optional parser in C, was tried in place of the
match: it takes bare line feeds and folded lines, and with what it takes to refuse those it was no faster.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any, NamedTuple

from gunicorn import SERVER, util
from gunicorn.http import wsgi

from app.connection import Connection

_HEAD = re.compile(  # possessive (++): no head, however malformed, takes longer than one pass to find unusual
    rb"(GET|HEAD|POST) (/[!-\"$-~]*+) HTTP/1\.1"  # no # in a path
    rb"((?:\r\n[!#$%&'*+.^`|~0-9A-Za-z-]++:[^\x00-\x08\x0a-\x1f\x7f]*+)*+)"  # no _ in a name
    rb"\r\n\r\n"
)
_ANSWER_HEAD = re.compile(
    r"HTTP/1\.1 \d\d\d [^\x00-\x08\x0a-\x1f\x7f]*+\r\n"
    r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++: [^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+"
)
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]++")
_UNUSUAL = frozenset(("expect", "http2-settings", "te", "trailer", "transfer-encoding", "upgrade"))
_READ_BYTES = 1 << 16
_LENGTHLESS = ("1", "204")
_BODILESS = (*_LENGTHLESS, "304")
_FIXED_FIELDS = 3  # Server, Date and Connection
_MOST_NAMES = 1000
_Body = Iterable[bytes]
_Start = Callable[..., Callable[[bytes], object]]


class Request(NamedTuple):
    """An ordinary request."""

    environ: dict[str, Any]
    body: "Body"
    keep: bool
    """Whether the client would keep the connection."""


class Body:
    """`wsgi.input`: what came with the head, and then what the connection gives, up to the declared length."""

    __slots__ = ("_connection", "_have", "_left", "rest")

    def __init__(self, connection: Connection, data: bytes, at: int, length: int) -> None:
        """The body begins `at` this index of `data`."""
        self._connection = connection
        self._have = data[at : at + length]
        self._left = length
        self.rest = data[at + length :]
        """What follows the body: the beginning of the next request."""

    def read(self, size: int | None = None) -> bytes:
        """Up to `size` bytes, fewer only at the end. Raises OSError, of which TimeoutError is one."""
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        pieces, have = [self._have], len(self._have)
        while have < wanted:
            data = self._connection.recv(_READ_BYTES)
            if not data:
                break
            pieces.append(data)
            have += len(data)
        everything = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if have > self._left:
            self.rest = everything[self._left :]
            everything = everything[: self._left]
        self._have = everything[wanted:]
        taken = everything[:wanted]
        self._left -= len(taken)
        return taken

    def finished(self) -> bool:
        """Whether nothing is left to read, so that the next request can follow."""
        return self._left == 0


class FastPath:
    """The fast path of one worker."""

    def __init__(self, cfg: Any) -> None:
        hooks = (cfg.settings[name] for name in ("pre_request", "post_request"))
        plain = cfg.protocol == "http" and not cfg.is_ssl and cfg.proxy_protocol == "off"
        # gunicorn itself reads SCRIPT_NAME from the process's environment, for every request.
        self._used = plain and not os.environ.get("SCRIPT_NAME") and all(hook.get() == hook.default for hook in hooks)
        self._longest = min(cfg.limit_request_line or 4094, cfg.limit_request_field_size or 8190, 8190)
        self._most_fields = min(cfg.limit_request_fields, 100)
        self._schemes = frozenset("HTTP_" + name.upper().replace("-", "_") for name in cfg.secure_scheme_headers)
        self._only_loopback_is_trusted = set(cfg.forwarded_allow_ips) <= {"127.0.0.1", "::1"}
        self._keys: dict[str, str] = {}
        self.field_names: dict[str, str] = {}
        """Of answers, as they are written and in lower case."""
        self._constant = {**wsgi.base_environ(cfg), "wsgi.multithread": True, "wsgi.url_scheme": "http"}
        self.keeps = bool(cfg.keepalive)
        self._second = 0
        self._fixed = ""

    def environ_of(self, connection: Connection, listener: Any, addr: Any) -> dict[str, Any] | None:
        """What all requests of a connection have in their environ, or None if it has no fast path."""
        if not self._used or not isinstance(addr, tuple) or not isinstance(listener, tuple):
            return None
        return {
            **self._constant,
            "gunicorn.socket": connection,
            "REMOTE_ADDR": addr[0],
            "REMOTE_PORT": str(addr[1]),
            "SERVER_NAME": listener[0],
            "SERVER_PORT": str(listener[1]),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SCRIPT_NAME": "",
        }

    def parse(self, connection: Connection, base: dict[str, Any], data: bytes) -> Request | None:
        """The ordinary request that `data` begins with, or None."""
        found = _HEAD.match(data, 0, self._longest)
        if found is None:
            return None
        method, target, block = found.groups()
        fields = block.decode("latin-1").split("\r\n")
        if len(fields) > self._most_fields:
            return None
        environ = base.copy()
        for at in range(1, len(fields)):
            name, _, value = fields[at].partition(":")
            key = self._keys.get(name) or self._key(name)
            if not key or key in environ:
                return None
            environ[key] = value.strip(" \t")
        length = environ.get("CONTENT_LENGTH", "0")
        keep = environ.get("HTTP_CONNECTION", "keep-alive").lower()
        if not (length.isdecimal() and length.isascii() and len(length) < 16 and keep in ("keep-alive", "close")):
            return None
        if not self._schemes.isdisjoint(environ) and self._may_be_trusted(environ["REMOTE_ADDR"]):
            return None  # gunicorn decides whose word it takes for the scheme
        uri = target.decode("ascii")
        path, _, query = uri.partition("?")
        environ["REQUEST_METHOD"] = method.decode("ascii")
        environ["RAW_URI"] = uri
        environ["PATH_INFO"] = util.unquote_to_wsgi_str(path) if "%" in path else path
        environ["QUERY_STRING"] = query
        body = environ["wsgi.input"] = Body(connection, data, found.end(), int(length))
        return Request(environ, body, keep == "keep-alive")

    def _key(self, name: str) -> str:
        """The key of a field in an environ; empty for one that isn't ordinary."""
        low = name.lower()
        if low in _UNUSUAL:
            key = ""
        elif low in ("content-type", "content-length"):
            key = low.upper().replace("-", "_")
        else:
            key = "HTTP_" + low.upper().replace("-", "_")
        if key and len(self._keys) < _MOST_NAMES:  # clients choose the names
            self._keys[name] = key
        return key

    def _may_be_trusted(self, address: str) -> bool:
        return not self._only_loopback_is_trusted or ":" in address or address.startswith("127.")

    def field_name(self, name: str) -> str:
        """The name of a field of an answer in lower case. Raises ValueError if it is none."""
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
        if len(self.field_names) < _MOST_NAMES:
            self.field_names[name] = name.lower()
        return name.lower()

    def fixed_fields(self) -> str:
        """The fields that every answer has; the date changes once a second."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._fixed = f"Server: {SERVER}\r\nDate: {formatdate(now, usegmt=True)}\r\nConnection: "
        return self._fixed


class Answer:
    """An answer being written."""

    __slots__ = (
        "_connection",
        "_length",
        "_path",
        "_request",
        "_sent",
        "_status",
        "_stops",
        "chunked",
        "fields",
        "keep",
    )

    def __init__(self, connection: Connection, request: Request, stops: Callable[[], bool], path: FastPath) -> None:
        self._connection = connection
        self._request = request
        self._stops = stops
        self._path = path
        self._status = ""
        self._sent = False
        self._length: int | None = None
        self.chunked = False
        self.fields: list[tuple[str, str]] = []
        self.keep = False

    def send(self, application: Callable[[Any, _Start], _Body]) -> None:
        """Call the application and write what it answers."""
        chunks = application(self._request.environ, self.start)
        try:
            for chunk in chunks:
                self.write(chunk)
            self.end()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    @property
    def headers_sent(self) -> bool:
        """Whether the client has got a part of it."""
        return self._sent

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """WSGI's start_response."""
        if exc_info is not None:
            if self._sent:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._status:
            raise AssertionError("the answer was begun before")
        self._status, self.fields = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        """Send the head if it hasn't been, and a piece of the body."""
        if not self._sent:
            whole = self._head() + self._framed(data)
            self._sent = True
            self._connection.sendall(whole)
        elif data:
            self._connection.sendall(self._framed(data))

    def end(self) -> None:
        """Send what is missing: the head of an answer without a body, or the last chunk."""
        if not self._sent:
            self.write(b"")
        if self.chunked:
            self._connection.sendall(b"0\r\n\r\n")

    def ends_with_connection(self) -> bool:
        """Whether nothing but the close of the connection tells a client that this answer is whole."""
        return False  # an ordinary request is HTTP/1.1: there is a length, or there are chunks

    def _framed(self, data: bytes) -> bytes:
        if self.chunked and data:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._length is None:
            return b""
        data = data[: self._length]
        self._length -= len(data)
        return data

    def _head(self) -> bytes:
        request, status = self._request, self._status
        self.keep = request.keep and request.body.finished() and not self._stops() and self._path.keeps
        lines = [f"HTTP/1.1 {status}\r\n{self._path.fixed_fields()}{'keep-alive' if self.keep else 'close'}\r\n"]
        names = self._path.field_names
        for name, value in self.fields:
            low = names.get(name) or self._path.field_name(name)
            if low in util.hop_headers:  # the server's own, not the application's
                continue
            if low == "content-length":
                self._length = int(value)
                if status.startswith(_LENGTHLESS):
                    continue
            lines.append(name + ": " + value + "\r\n")  # no f-string: a value that is no text is a mistake
        if status.startswith(_BODILESS) or request.environ["REQUEST_METHOD"] == "HEAD":
            self._length = None
        elif self._length is None:
            self.chunked = True
            lines.append("Transfer-Encoding: chunked\r\n")
        head = "".join(lines)
        if head.count("\n") != len(lines) + _FIXED_FIELDS or not _ANSWER_HEAD.fullmatch(head):
            raise ValueError("the status or a header of the answer has characters that it must not have")
        return f"{head}\r\n".encode("latin-1")
