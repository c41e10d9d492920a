"""The worker's fast path beside gunicorn's own parser and response: the same bytes, the same outcome.

Three servers with the same application (echo_wsgi.py): one with the fast path; one with the same worker but for the
fast path, which a hook switches off; and one with gunicorn's own gevent worker. Every entry of requests_corpus.py is
sent to each, and to the first one also in two pieces, cut at every position. Where they are cut, the second piece is
sent when the kernel has nothing left of the first one: the worker has read it.
"""

import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.echo_wsgi import PENDING_DIGITS
from tests.support.generated_requests import generated_requests
from tests.support.ports import free_port
from tests.support.requests_corpus import CORPUS, LIMIT_FIELD, LIMIT_LINE
from tests.support.router import GUNICORN, ROOT

pytestmark = pytest.mark.slow

_CONFIG = """
from gevent import monkey

monkey.patch_all()

wsgi_app = "tests.support.echo_wsgi:application"
worker_class = "{worker}"
workers = 1
bind = "127.0.0.1:{port}"
backlog = 2048
keepalive = 60
timeout = 0  # a worker that hangs is seen by the tests
graceful_timeout = 1
forwarder_headers = ""
http_parser = "python"
control_socket_disable = True
loglevel = "error"
{hook}
"""
_OURS, _STOCK = "app.server.worker.RouterWorker", "gevent"
_HOOK = """
def pre_request(worker, req):
    pass
"""
_AT_ONCE = 250
_TIMEOUT_S = 30.0
_SETTLE_S = 0.2
"""Time for what is on its way on a busy machine."""
_EVERY_CUT = 500  # bytes; longer entries are cut only where it can matter


class Answer(NamedTuple):
    """One answer, without what differs from run to run."""

    status: str
    fields: tuple[str, ...]
    body: tuple[bytes, ...]
    """Its chunks, or all in one."""


class Outcome(NamedTuple):
    """What a client saw of a connection on which it sent all, waited, and then sent its end."""

    answers: tuple[Answer, ...]
    """Those before it sent its end."""
    open: bool
    """Whether the server had kept the connection by then."""
    last: tuple[Answer, ...]
    """What came then, without `Connection`: no request can follow."""

    def gist(self) -> object:
        """What any server with this parser would have in common with it."""
        every = (*self.answers, *self.last)
        good = tuple((answer.status, answer.body) for answer in every if answer.status.startswith("HTTP/1.1 2"))
        return [answer.status.split()[1] for answer in every], good, self.open


class Server:
    """A gunicorn with the echo application, and one worker."""

    def __init__(self, folder: Path, worker: str, hook: str = "") -> None:
        self.port = free_port()
        self._log = folder / f"{self.port}.log"
        self._config = folder / f"{self.port}.conf.py"
        self._config.write_text(_CONFIG.format(worker=worker, port=self.port, hook=hook))
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> "Server":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [GUNICORN, "-c", self._config], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                self.wait_turns()
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, "the server doesn't start"
                time.sleep(0.02)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_TIMEOUT_S)

    def wait_turns(self) -> None:
        """Until the worker's event loop has gone round, and everything that its pacing held back before has begun."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=_TIMEOUT_S) as sock:
            for _ in range(3):
                sock.sendall(b"POST /empty HTTP/1.1\r\nHost: h\r\n\r\n")
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")

    def outcomes(self, sent: Iterable[bytes], settle_s: float = 0.0) -> list[Outcome]:
        """What comes of each, sent at once on a connection of its own."""
        return self.outcomes_in_pieces(((data,) for data in sent), settle_s)

    def outcomes_in_pieces(self, sent: Iterable[tuple[bytes, ...]], settle_s: float = 0.0) -> list[Outcome]:
        """The same, sent piece by piece."""
        found: list[Outcome] = []
        rest = iter(sent)
        while group := list(itertools.islice(rest, _AT_ONCE)):
            with ExitStack() as stack:
                clients = [stack.enter_context(_Client(self.port, pieces)) for pieces in group]
                for number in range(max(map(len, group))):
                    for client in clients:
                        client.send(number)
                    self._wait_read()
                self.wait_turns()
                time.sleep(settle_s)
                for client in clients:
                    client.look()
                for client in clients:
                    client.send_end()
                found += [client.outcome() for client in clients]
        return found

    def _wait_read(self) -> None:
        """Return when the worker has read everything that was sent to it before.

        Connections are accepted in their order, so the worker has all earlier ones when it takes this one.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=_TIMEOUT_S) as sock:
            deadline = time.monotonic() + _TIMEOUT_S
            while True:
                sock.sendall(b"POST /pending HTTP/1.1\r\nHost: h\r\n\r\n")
                data = b""
                while len(data.partition(b"\r\n\r\n")[2]) < PENDING_DIGITS:  # head and body may come apart
                    data += sock.recv(65536)
                if not int(data[-PENDING_DIGITS:]):
                    return
                assert time.monotonic() < deadline, "the worker doesn't read"


class _Client:
    """A connection."""

    def __init__(self, port: int, pieces: tuple[bytes, ...]) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pieces = pieces
        self._got = b""
        self._open = True
        self._before, self._kept = 0, True

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave no TIME_WAIT
        self._sock.close()

    def send(self, number: int) -> None:
        """Send a piece, if there are so many."""
        try:
            self._sock.sendall(b"".join(self._pieces[number : number + 1]))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server refused what came before

    def look(self) -> None:
        """Take what has come."""
        self._sock.setblocking(False)
        try:
            self._take()
        except BlockingIOError:
            pass

    def _take(self) -> None:
        while self._open:
            try:
                data = self._sock.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            self._got += data
            self._open = bool(data)

    def send_end(self) -> None:
        """Send the end of the client's side."""
        self._before, self._kept = len(self._got), self._open
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server was faster

    def outcome(self) -> Outcome:
        """Returns what came before the end was sent, and what still comes."""
        self._sock.settimeout(_TIMEOUT_S)
        self._take()
        last = [answer._replace(fields=_without_connection(answer)) for answer in _answers(self._got[self._before :])]
        return Outcome(_answers(self._got[: self._before]), self._kept, tuple(last))


def _without_connection(answer: Answer) -> tuple[str, ...]:
    return tuple(line for line in answer.fields if not line.startswith("Connection:"))


_VARIABLE = ("date:", "x-request-id:", "server-timing:")


def _answers(data: bytes) -> tuple[Answer, ...]:
    """The answers in this, as their framing says."""
    found = []
    while data:
        head, blank, data = data.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body: list[bytes] = []
        if fields.get("x-method") == "HEAD" or re.match(r"HTTP/1.1 (1..|204|304)", status) or not blank:
            pass
        elif fields.get("transfer-encoding") == "chunked":
            piece: bytes | None = None
            while data and piece != b"":
                size, _, data = data.partition(b"\r\n")
                piece, end, data = data[: int(size, 16)], data[int(size, 16) :][:2], data[int(size, 16) + 2 :]
                body.append(piece + end)
        else:
            length = int(fields.get("content-length", len(data)))
            body, data = [data[:length]], data[length:]
        kept = sorted(line for line in lines if not line.lower().startswith(_VARIABLE))
        found.append(Answer(status, tuple(kept), tuple(body)))
    return tuple(found)


class Servers(NamedTuple):
    """One of each kind."""

    fast: Server
    slow: Server
    stock: Server


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """All three, running."""
    folder = tmp_path_factory.mktemp("equivalence")
    with Server(folder, _OURS) as fast, Server(folder, _OURS, _HOOK) as slow, Server(folder, _STOCK) as stock:
        yield Servers(fast, slow, stock)


@pytest.fixture(scope="module")
def slow(servers: Servers) -> dict[str, Outcome]:
    """What comes of every entry where the fast path is off."""
    return dict(zip(CORPUS, servers.slow.outcomes((entry.data for entry in CORPUS.values()), _SETTLE_S), strict=True))


def _where_to_cut(data: bytes) -> Iterable[int]:
    """Everywhere; in long entries only near the ends of lines, of receive buffers, and of limits."""
    if len(data) <= _EVERY_CUT:
        return range(1, len(data))
    ends = {found.end() for found in re.finditer(rb"\r\n", data)}
    if len(ends) > 20:
        ends = {*sorted(ends)[:5], *sorted(ends)[-5:]}
    edges = {*ends, LIMIT_LINE, 8190, 8192, LIMIT_FIELD, 1 << 16}
    return sorted({near for edge in edges for near in range(edge - 3, edge + 3) if 0 < near < len(data)})


def _differences(pairs: Mapping[Any, tuple[object, object]]) -> str:
    """Those that differ, one above the other."""
    return "\n".join(f"{key}:\n  {one}\n  {other}" for key, (one, other) in pairs.items() if one != other)


def test_fast_path_answers_as_the_worker_without_it(servers: Servers, slow: dict[str, Outcome]) -> None:
    """The same bytes: as many answers, each the same in status, fields and body, and the connection kept or not."""
    names = [name for name, entry in CORPUS.items() if not entry.fast_closes]
    fast = servers.fast.outcomes((CORPUS[name].data for name in names), _SETTLE_S)
    assert not _differences({name: (outcome, slow[name]) for name, outcome in zip(names, fast, strict=True)})


def test_worker_answers_as_gunicorns_own(servers: Servers, slow: dict[str, Outcome]) -> None:
    """Statuses, what the application saw, bodies, and whether the connection is kept: all as gunicorn decides them."""
    stock = dict(zip(CORPUS, servers.stock.outcomes((entry.data for entry in CORPUS.values()), _SETTLE_S), strict=True))
    pairs = {name: (slow[name].gist(), stock[name].gist()) for name in CORPUS}
    assert not _differences({name: pair for name, pair in pairs.items() if not CORPUS[name].stock_differs})
    assert not [name for name, (ours, theirs) in pairs.items() if CORPUS[name].stock_differs and ours == theirs]


def test_body_read_in_part_closes(servers: Servers, slow: dict[str, Outcome]) -> None:
    """What is left unread of an ordinary request's body ends the connection; the answer is otherwise the same."""
    for name in (name for name, entry in CORPUS.items() if entry.fast_closes):
        (outcome,) = servers.fast.outcomes([CORPUS[name].data], _SETTLE_S)
        (answer,) = outcome.answers
        assert (answer.status, answer.body) == slow[name].answers[0][::2]
        assert "Connection: close" in answer.fields
        assert not outcome.open


def test_cuts_change_nothing(servers: Servers, slow: dict[str, Outcome], tmp_path: Path) -> None:
    """Wherever the network cuts what a client sends, it means the same: no request is taken before it is whole."""
    names = [name for name, entry in CORPUS.items() if not entry.fast_closes]
    cuts = [(name, at) for name in names for at in _where_to_cut(CORPUS[name].data)]

    def outcomes(server: Server, cuts: list[tuple[str, int]], settle_s: float = 0.0) -> list[Outcome]:
        pieces = ((CORPUS[name].data[:at], CORPUS[name].data[at:]) for name, at in cuts)
        return server.outcomes_in_pieces(pieces, settle_s)

    half = len(cuts) // 2
    with Server(tmp_path, _OURS) as other, ThreadPoolExecutor(2) as pool:  # a core each: these are many
        halves = list(pool.map(outcomes, (servers.fast, other), (cuts[:half], cuts[half:])))
    found = zip(cuts, itertools.chain(*halves), strict=True)
    odd = [cut for cut, outcome in found if outcome != slow[cut[0]]]
    assert len(odd) < len(cuts) / 20, odd[:10]
    # The machine is slow, or gunicorn itself takes these apart: look again, with time, at what the worker without does.
    again = zip(outcomes(servers.fast, odd, _SETTLE_S), outcomes(servers.slow, odd, _SETTLE_S), strict=True)
    assert not _differences(dict(zip(odd, again, strict=True)))


@settings(max_examples=20)
@given(st.lists(generated_requests(), min_size=60, max_size=60))
def test_generated_requests_are_answered_alike(servers: Servers, generated: list[tuple[bytes, ...]]) -> None:
    """The same of what nobody thought of: requests with odd targets, fields, lengths and bytes, and what follows."""
    sent = [b"".join(pieces) for pieces in generated]
    odd = [data for data, pairs in _compared(servers, sent).items() if _differ(pairs)]
    # The machine may be busy: look again, with time, at those that differed.
    again = _compared(servers, odd, _SETTLE_S)
    assert not [(data, pairs) for data, pairs in again.items() if _differ(pairs)]


_Pair = tuple[object, object]


def _compared(servers: Servers, sent: list[bytes], settle_s: float = 0.0) -> dict[bytes, tuple[_Pair, _Pair]]:
    """What comes of each with the fast path and without; and the gist of it without, and with gunicorn's own worker."""
    fast, slow, stock = (server.outcomes(sent, settle_s) for server in servers)
    return {
        data: ((one, other), (other.gist(), third.gist() if _means_the_same_to_gunicorn(data) else other.gist()))
        for data, one, other, third in zip(sent, fast, slow, stock, strict=True)
    }


_OURS_ALONE = re.compile(rb"(?i)cookie|connection|\A\s*[^\r\n]*(?:#|://| HTTP/1\.[2-9])")


def _means_the_same_to_gunicorn(data: bytes) -> bool:
    """Whether nothing is in it for which our parser has a rule of its own; the corpus has that (`stock_differs`)."""
    one_host = len(re.findall(rb"(?i)host", data)) == len(re.findall(rb" HTTP/1\.\d\r\nHost: h\r\n", data))
    return one_host and data.find(b"\r\nHost: h\r\n") == data.find(b"\r\n", 2) and not _OURS_ALONE.search(data)


def _differ(pairs: tuple[_Pair, _Pair]) -> bool:
    return any(one != other for one, other in pairs)
