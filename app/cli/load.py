"""A load of requests on one server, and what was measured of it.

The requests go through the router's own strict HTTP client, so an error has the same name as in the router's log. Each
of the connections sends its next request when the response before it has ended (a closed loop).
"""

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import gevent
import msgspec

from app.config.addresses import check_url
from app.config.route_schema import Endpoint, Timeouts
from app.errors import UpstreamError
from app.native import monotonic
from app.protocols.event_stream import EventReader
from app.routing.endpoint_connections import address_of
from app.upstream.pool import Pool
from app.upstream.resolver import Resolver

_MOST_ERROR_BYTES = 64 << 10
_PATH = re.compile("/[!-~]*")
_PAUSE_S = 0.01
"""After an error, so that a server that is gone or full is not asked as fast as it can say so."""


class Target(NamedTuple):
    """What is sent, and where."""

    url: str
    """The server's, without the path of the request."""
    request: bytes
    timeout_s: float


class Bounds(NamedTuple):
    """When a load ends."""

    connections: int
    requests: int | None
    seconds: float | None


@dataclass
class Measured:
    """What was measured of a load. Times are seconds."""

    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    """From the sending of a request to the end of its response, of those that succeeded."""
    first_output: list[float] = field(default_factory=list)
    """From there to the first event of a stream that carries output, or to the first byte of another body."""
    errors: Counter[str] = field(default_factory=Counter)
    """By their kind."""
    tokens: int = 0
    """Events that carry output."""
    interrupted: bool = False
    """Whether Ctrl-C ended it."""

    def add(self, other: "Measured") -> None:
        """Add another load's."""
        self.seconds += other.seconds
        self.times += other.times
        self.first_output += other.first_output
        self.errors += other.errors
        self.tokens += other.tokens
        self.interrupted |= other.interrupted


def target(base: str, path: str, body: bytes, headers: tuple[tuple[str, str], ...], timeout_s: float) -> Target:
    """Returns a request to this server. Raises ValueError if URL, path or headers are none."""
    url = base.rstrip("/")
    check_url(url)
    if not _PATH.fullmatch(path):
        raise ValueError("a path must begin with a slash, and hold printable ASCII without spaces")
    lines = [f"POST {urlsplit(url).path}{path} HTTP/1.1", f"Host: {urlsplit(url).netloc}"]
    given = {name.lower() for name, _ in headers}
    if "content-type" not in given:
        lines.append("Content-Type: application/json")
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"Content-Length: {len(body)}")
    if not all(line.isprintable() and line.isascii() for line in lines):
        raise ValueError("headers must be printable ASCII")
    return Target(url, "\r\n".join((*lines, "", "")).encode() + body, timeout_s)


def run(target: Target, bounds: Bounds, on_end: Callable[[], None]) -> Measured:
    """Send the load, and call `on_end` after every request. Returns what was measured, until Ctrl-C if that comes."""
    load = _Load(target, bounds, on_end)
    began = monotonic()
    senders = [gevent.spawn(load.send) for _ in range(bounds.connections)]

    def interrupt() -> None:
        load.measured.interrupted = True
        gevent.killall(senders, block=False)

    on_signal = gevent.signal_handler(signal.SIGINT, interrupt)
    try:
        gevent.joinall(senders, timeout=bounds.seconds, raise_error=True)
        load.stop()
        gevent.joinall(senders, timeout=target.timeout_s, raise_error=True)
    finally:
        on_signal.cancel()
        gevent.killall(senders)
        load.close()
    load.measured.seconds = monotonic() - began
    return load.measured


class _Load:
    def __init__(self, target: Target, bounds: Bounds, on_end: Callable[[], None]) -> None:
        self.measured = Measured()
        self._target = target
        self._pool = Pool(address_of(Endpoint(url=target.url)), Resolver())
        self._left = bounds.requests
        self._stops = False
        self._on_end = on_end
        seconds = target.timeout_s
        self._timeouts = Timeouts(connect_s=seconds, first_byte_s=seconds, idle_s=seconds, total_s=seconds)

    def stop(self) -> None:
        """Begin no more requests."""
        self._stops = True

    def close(self) -> None:
        self._pool.close()

    def send(self) -> None:
        """Send one request after the other: one of the connections."""
        while not self._stops and self._left != 0:
            if self._left is not None:
                self._left -= 1
            failed = self._send_one()
            self._on_end()
            if failed:
                gevent.sleep(_PAUSE_S)

    def _send_one(self) -> bool:
        """Returns whether the request failed."""
        began, measured = monotonic(), self.measured
        deadline = began + self._target.timeout_s
        try:
            response = self._pool.send(self._target.request, "POST", self._timeouts, deadline, _Sender())
            try:
                head = response.head
                if head.status >= 300:
                    measured.errors[_kind_of(head.status, response.body())] += 1
                    return True
                streams = any(n == "content-type" and v.startswith("text/event-stream") for n, v in head.headers)
                first = self._read(response.body(), streams)
            finally:
                response.close()
        except UpstreamError as error:
            measured.errors[error.code.removeprefix("upstream_")] += 1
            return True
        ended = monotonic()
        measured.times.append(ended - began)
        measured.first_output.append((first or ended) - began)
        return False

    def _read(self, body: Iterator[bytes], streams: bool) -> float | None:
        """Read a body to its end. Returns when its output began."""
        reader = EventReader() if streams else None
        first = None
        for piece in body:
            carries = 1 if reader is None else reader.feed(piece)
            if carries and first is None:
                first = monotonic()
        if reader is not None:
            self.measured.tokens += reader.events
        return first


class _Sender:
    """See `upstream.pool.Sender`: a benchmark repeats what a server has not read, as the router does."""

    def may_repeat(self) -> bool:
        return True

    def contacts_server(self) -> None:
        pass


def _kind_of(status: int, body: Iterator[bytes]) -> str:
    """Returns the status, and the code if the body has one, as the router's errors have."""
    text = b""
    for piece in body:
        text += piece[: _MOST_ERROR_BYTES - len(text)]
    try:
        document = msgspec.json.decode(text)
        error = document.get("error")
        code = error.get("code") if isinstance(error, dict) else document.get("code")
    except (msgspec.DecodeError, AttributeError):
        code = None
    return f"{status} {code}" if isinstance(code, str) and code.isidentifier() else str(status)
