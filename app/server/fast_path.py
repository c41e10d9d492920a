"""The fast path: an ordinary request is read with one match, and its response is written with one call.

Rules:
- **Ordinary** is what `native.split_request` reads from the first byte to the blank line, all of it received at once:
  GET, HEAD or POST, a path, HTTP/1.1, each header field on one line, no field twice, none of `_UNUSUAL`, a Host,
  Connection absent or `keep-alive` or `close`, and no Content-Length but a plain number of under 16 digits.
- **Everything else is the parser's.** `parse` returns None, and `request_parser.py` gets the same bytes. Invariant:
  what is ordinary is a subset of what that parser accepts, and is given the same meaning. So the fast path neither
  decides about malformed input nor accepts what is rejected there (tests/e2e/test_equivalence.py compares the two).
- The limits hold: a head that is longer than one of them is left to the parser. So are connections with hooks, TLS of
  gunicorn's own, the PROXY protocol or a Unix socket, and forwarded schemes from trusted peers.

What this saves is measured by tests/bench/tricks.py. gunicorn_h1c, gunicorn's optional parser in C, was tried in place
of the match. It accepts bare line feeds and folded lines; with the checks that reject those it saved under 2 %.
"""

import re
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any

from gunicorn import SERVER, util
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.message import DEFAULT_MAX_HEADERFIELD_SIZE, MAX_HEADERS, MAX_REQUEST_LINE

from app.http_fields import FIELD_NAME, Headers, is_host
from app.native import join_response, split_request
from app.server.client_connection import ClientConnection
from app.server.declared_body import DeclaredBody

_FIELD_NAME = re.compile(FIELD_NAME)
_UNUSUAL = frozenset(("expect", "http2-settings", "te", "trailer", "transfer-encoding", "upgrade"))
_LENGTHLESS = ("1", "204")
_BODILESS = (*_LENGTHLESS, "304")
_MOST_NAMES, _LONGEST_NAME = 1000, 100
_Body = Iterable[bytes]
_Start = Callable[..., Callable[[bytes], object]]


class Request:
    """An ordinary request."""

    __slots__ = ("body", "environ", "keep")

    def __init__(self, environ: dict[str, Any], body: DeclaredBody, keep: bool) -> None:
        self.environ = environ
        self.body = body
        self.keep = keep
        """Whether the client wants to keep the connection."""


class _Keys(dict[str, str]):
    """Maps the name of a header field to its key in an environ, or to "" if the field is not ordinary."""

    def __missing__(self, name: str) -> str:
        low = name.lower()
        key = name.upper().replace("-", "_")
        if low in _UNUSUAL:
            key = ""
        elif low not in ("content-type", "content-length"):
            key = "HTTP_" + key
        if len(self) < _MOST_NAMES and len(name) <= _LONGEST_NAME:  # clients choose the names
            self[name] = key
        return key


class FastPath:
    """The fast path of one worker."""

    def __init__(self, cfg: Config, script_name: str = "") -> None:
        """`script_name` is the environment variable SCRIPT_NAME: gunicorn removes it from the paths of all requests."""
        hooks = (cfg.settings[name] for name in ("pre_request", "post_request"))
        plain = cfg.protocol == "http" and not cfg.is_ssl and cfg.proxy_protocol == "off"
        self._used = plain and not script_name and all(hook.get() == hook.default for hook in hooks)
        self._longest = cfg.limit_request_field_size or DEFAULT_MAX_HEADERFIELD_SIZE
        self._longest_target = min(cfg.limit_request_line or MAX_REQUEST_LINE, MAX_REQUEST_LINE) - len(" HTTP/1.1")
        self._most_fields = min(cfg.limit_request_fields, MAX_HEADERS)
        self._schemes = frozenset("HTTP_" + name.upper().replace("-", "_") for name in cfg.secure_scheme_headers)
        self._only_loopback_is_trusted = set(cfg.forwarded_allow_ips) <= {"127.0.0.1", "::1"}
        self._keys = _Keys()
        self._own_names: set[str] = set()
        self._constant = {**wsgi.base_environ(cfg), "wsgi.multithread": True, "wsgi.url_scheme": "http"}
        self.keeps = bool(cfg.keepalive)
        self._second = 0
        self._fixed: Headers = []

    def environ_of(self, connection: ClientConnection, listener: Any, addr: Any) -> dict[str, Any] | None:
        """Returns what the environs of all requests of a connection share, or None if it has no fast path."""
        if not self._used or not isinstance(addr, tuple) or not isinstance(listener, tuple):
            return None
        return {
            **self._constant,
            **connection.facts,
            "gunicorn.socket": connection,
            "REMOTE_ADDR": addr[0],
            "REMOTE_PORT": str(addr[1]),
            "SERVER_NAME": listener[0],
            "SERVER_PORT": str(listener[1]),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SCRIPT_NAME": "",
        }

    def parse(self, connection: ClientConnection, base: dict[str, Any], data: bytes) -> Request | None:
        """Returns the ordinary request that `data` begins with, or None."""
        found = split_request(data, self._longest)
        if found is None:
            return None
        method, uri, pairs, end = found
        keys = self._keys
        fields = {keys[name]: value for name, value in pairs}
        if "" in fields or len(fields) < len(pairs) or len(pairs) > self._most_fields:
            return None
        if len(method) + 1 + len(uri) > self._longest_target or not is_host(fields.get("HTTP_HOST", " ")):
            return None
        length = fields.get("CONTENT_LENGTH", "0")
        keep = fields.get("HTTP_CONNECTION", "keep-alive").lower()
        if not (length.isdecimal() and length.isascii() and len(length) < 16 and keep in ("keep-alive", "close")):
            return None
        if not self._schemes.isdisjoint(fields) and self._may_be_trusted(base["REMOTE_ADDR"]):
            return None  # gunicorn decides whether it trusts this peer for the scheme
        path, _, query = uri.partition("?")
        body = DeclaredBody(connection, data, end, int(length))
        environ = {
            **base,
            **fields,
            "REQUEST_METHOD": method,
            "RAW_URI": uri,
            "PATH_INFO": util.unquote_to_wsgi_str(path) if "%" in path else path,
            "QUERY_STRING": query,
            "wsgi.input": body,
        }
        return Request(environ, body, keep == "keep-alive")

    def _may_be_trusted(self, address: str) -> bool:
        return not self._only_loopback_is_trusted or ":" in address or address.startswith("127.")

    def application_fields(self, fields: Headers) -> tuple[Headers, int | None]:
        """Returns the fields that an application may set, and the Content-Length among them. Raises ValueError.

        Hop-by-hop fields are the server's: they are dropped.
        """
        length = None
        own = self._own_names
        for field in fields:
            name, value = field
            if name in own:
                continue
            low = name.lower()
            if not _FIELD_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a header")
            if low == "content-length":
                length = int(value)
            elif low in util.hop_headers:
                fields = [other for other in fields if other is not field]
            elif len(own) < _MOST_NAMES:
                own.add(name)
        return fields, length

    def fixed_fields(self) -> Headers:
        """Returns the fields that every response has. The date changes once a second."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._fixed = [("Server", SERVER), ("Date", formatdate(now, usegmt=True))]
        return self._fixed


class ResponseWriter:
    """A response that is being written."""

    def __init__(
        self, connection: ClientConnection, request: Request, stops: Callable[[], bool], path: FastPath
    ) -> None:
        self._client = connection
        self._request = request
        self._stops = stops
        self._path = path
        self._status = ""
        self.headers_sent = False
        """Whether a part of the response was sent."""
        self._length: int | None = None
        self.chunked = False
        self.fields: Headers = []
        self.keep = False

    def send(self, application: Callable[[Any, _Start], _Body]) -> None:
        """Call the application and write its response."""
        chunks = application(self._request.environ, self.start)
        try:
            for chunk in chunks:
                self.write(chunk)
            self.end()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def start(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
        """WSGI's start_response."""
        if exc_info is not None:
            if self.headers_sent:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._status:
            raise AssertionError("the response was begun before")
        self._status, self.fields = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        """Send the head, if it was not sent yet, and a piece of the body."""
        if not self.headers_sent:
            whole = self._head() + self._framed(data)
            self.headers_sent = True
            self._client.sendall(whole)
        elif data:
            self._client.sendall(self._framed(data))

    def end(self) -> None:
        """Send what is missing: the head of a response without a body, or the last chunk."""
        if not self.headers_sent:
            self.write(b"")
        if self.chunked:
            self._client.sendall(b"0\r\n\r\n")

    def ends_with_connection(self) -> bool:
        """Whether only the close of the connection tells the client that the response is complete."""
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
        fields, self._length = self._path.application_fields(self.fields)
        if status.startswith(_LENGTHLESS) and self._length is not None:
            fields = [field for field in fields if field[0].lower() != "content-length"]
        if status.startswith(_BODILESS) or request.environ["REQUEST_METHOD"] == "HEAD":
            self._length = None
        elif self._length is None:
            self.chunked = True
            fields = [*fields, ("Transfer-Encoding", "chunked")]
        connection = "keep-alive" if self.keep else "close"
        return join_response(status, [*self._path.fixed_fields(), ("Connection", connection)], fields)
