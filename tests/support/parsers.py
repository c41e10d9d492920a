"""The two readers of a request, on the same bytes: the fast path's, and the strict one, which it must agree with."""

from typing import Any, NamedTuple

from gunicorn.config import Config
from gunicorn.http import wsgi

from app.server.client_connection import ClientConnection, Response
from app.server.fast_path import FastPath, Request
from app.server.request_parser import StrictParser

LISTENER, PEER = ("127.0.0.1", 8080), ("127.0.0.9", 4711)
_OBJECTS = ("wsgi.input", "wsgi.errors", "gunicorn.socket", "wsgi.early_hints")  # the last is gunicorn's own extension


class Wire:
    """A connection: gives these pieces, and keeps what is sent."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.asked: list[int] = []
        self.sent: list[bytes] = []
        self.facts: dict[str, str] = {}

    def recv(self, size: int) -> bytes:
        self.asked.append(size)
        if not self.pieces:
            return b""
        data, self.pieces[0] = self.pieces[0][:size], self.pieces[0][size:]
        if not self.pieces[0]:
            del self.pieces[0]
        return data

    def recv_into(self, buffer: memoryview) -> int:
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.sent.append(bytes(data))

    def left(self) -> bytes:
        """What nobody has taken."""
        return b"".join(self.pieces)

    @property
    def connection(self) -> ClientConnection:
        """Itself, as the fast path takes it."""
        given: Any = self
        return given  # type: ignore[no-any-return]


class Read(NamedTuple):
    """What a parser made of the bytes."""

    environ: dict[str, Any]
    body: bytes
    rest: bytes
    keep: bool


def config(**given: object) -> Any:
    """gunicorn's configuration, as gunicorn.conf.py has it where it matters here."""
    cfg = Config()
    for name, value in {"forwarder_headers": "", "http_parser": "python", **given}.items():
        cfg.set(name, value)
    return cfg


PLAIN = config()
PATH = FastPath(PLAIN)
"""The fast path of a worker with that configuration."""


def ordinary(data: bytes, *more: bytes, cfg: Any = None, peer: Any = PEER, script_name: str = "") -> Request | None:
    """What the fast path makes of these bytes, the first of them there at once."""
    path = FastPath(cfg or PLAIN, script_name) if cfg or script_name else PATH
    wire = Wire(*more).connection
    base = path.environ_of(wire, LISTENER, peer)
    return None if base is None else path.parse(wire, base, data)


def taken(data: bytes, *more: bytes, cfg: Any = None, peer: Any = PEER, script_name: str = "") -> Read | None:
    """The same, with its body read."""
    request = ordinary(data, *more, cfg=cfg, peer=peer, script_name=script_name)
    if request is None:
        return None
    environ = {name: value for name, value in request.environ.items() if name not in _OBJECTS}
    wire = request.environ["gunicorn.socket"]
    return Read(environ, request.body.read(), request.body.rest + wire.left(), request.keep)


def gunicorns(data: bytes, *more: bytes, cfg: Any = None, peer: Any = PEER) -> Read:
    """What the strict parser, gunicorn's with our differences, makes of them. Raises what it raises."""
    cfg = cfg or PLAIN
    wire = Wire(data, *more)
    parser = StrictParser(cfg, wire, peer)
    request = next(parser)
    _, environ = wsgi.create(request, wire, peer, LISTENER, cfg, Response, (lambda: False,))
    environ["wsgi.multithread"] = True  # as workers that serve many requests at once do
    kept = {name: value for name, value in environ.items() if name not in _OBJECTS}
    body = request.body.read()
    return Read(kept, body, parser.unreader.take_buffered() + wire.left(), not request.should_close())
