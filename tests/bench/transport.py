"""What a POST to a model server costs by our own transport, and by libraries that could stand in its place.

    python -m tests.bench.transport [--posts 3200] [--rounds 5] [--clients 32] [--chunks 50] [--gap-ms 5]

One process, patched by gevent as a worker is, posts over loopback to one cheap server in another process: so many
greenlets at once, each with the next POST as soon as it has read the answer, on connections that are kept. Counted is
the processor time of the posting process alone, inside the system and outside; what the server costs is not.

- own: app.upstream.pool, with the making of the request as in app/routing/attempt.py, since the others make theirs too.
- gevent's socket: send once, receive once, with no parsing and one time limit: what the socket alone costs.
- geventhttpclient, urllib3, requests: as their documents say, with pools that hold all connections. requests looks for
  no proxies and no netrc.

How to read it: `us` is microseconds of processor time for one POST, the median of the rounds. `x own` is the median of
each round's ratio to our own in that round; the transports take turns, and another begins each round. Ratios compare
runs on different machines, microseconds don't. `spread` is the slowest round over the fastest; above 1.3 or so
something else was running. `made` counts connections, as the server saw them, in all rounds and the one before them
that warms up: as many as there are clients if they are kept, as many as `sent` if none is.

The second table is the same with 1,100 other descriptors open, so that those of the connections are above 1023, which
select() can't take. A worker with a thousand clients is there.

The third is of streams: answers of so many chunks, an event each, `--gap-ms` apart. Here `us` is for one chunk, with
its share of the POST, and `pieces` is in how many pieces it came: below 1 chunks were read together, and `us` says
less. By its public names geventhttpclient gives what has come only up to a separator, which does for events
(`readline`); its read(n) waits for n bytes, and its iteration for 4096. `its parts` feeds its parser by hand and takes
what is there, as a router must that passes on any stream; the names that takes are private.
"""

from gevent import monkey

monkey.patch_all()  # before anything else is imported, as in gunicorn.conf.py

import argparse  # noqa: E402
import gc  # noqa: E402
import mmap  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable, Iterable, Iterator  # noqa: E402
from contextlib import ExitStack, contextmanager  # noqa: E402
from typing import NamedTuple  # noqa: E402

import gevent  # noqa: E402
from gevent.server import StreamServer  # noqa: E402

from app.config.route_schema import Timeouts  # noqa: E402
from app.upstream.dialer import Address  # noqa: E402
from app.upstream.pool import Pool  # noqa: E402
from app.upstream.resolver import Resolver  # noqa: E402
from tests.bench.machine import raise_file_limit  # noqa: E402
from tests.bench.options import add_svg, at_least  # noqa: E402
from tests.bench.plot import write_svg  # noqa: E402
from tests.bench.table import Table, ratio  # noqa: E402

try:
    import requests
    import urllib3
    from geventhttpclient import HTTPClient
    from requests.adapters import HTTPAdapter
except ImportError as missing:
    raise SystemExit(f"{missing.name} is not installed; `make dev` installs it, pinned") from None

Ask = Callable[[], Iterable[bytes]]
"""Ask once, and give the body of the answer in pieces."""

HOST = "127.0.0.1"
TIMEOUT_S = 120.0
"""What takes longer than this will never come."""
DUMMIES = 1100
TIMEOUTS = Timeouts()
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "%s"}]}' % (b"word " * 50)
HEADERS = {
    "content-type": "application/json",
    "accept": "application/json",
    "user-agent": "bench/1",
    "x-request-id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "via": "1.1 inference-router",
}
REQUEST = re.compile(rb"POST (\S+) .*?\r\ncontent-length: (\d+)(?=\r\n).*?\r\n\r\n", re.DOTALL | re.IGNORECASE)
HEAD = b"HTTP/1.1 200 OK\r\ndate: Mon, 05 Jan 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
ANSWER_BODY = b'{"choices": [{"message": {"content": "%s"}}]}' % (b"word " * 80)
ANSWER_LENGTH = b"content-length: %d\r\ncontent-type: application/json\r\n\r\n" % len(ANSWER_BODY)
ANSWER = HEAD + ANSWER_LENGTH + ANSWER_BODY
STREAM_HEAD = HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id": "c1", "object": "chat.completion.chunk", "choices": [{"delta": {"content": " word"}}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


class Server(NamedTuple):
    """The server, as the posting process sees it."""

    port: int
    connections: memoryview
    """How many it has accepted: one number, in memory that both share."""


def serve(listener: socket.socket, connections: memoryview, chunks: int, gap_s: float) -> None:
    """Answer every POST until the parent is gone: /stream by chunks with gaps, all others at once."""
    parent = os.getppid()

    def handle(sock: socket.socket, _: object) -> None:
        connections[0] += 1
        buffer = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := sock.recv(1 << 16):
            buffer += data
            request = REQUEST.match(buffer)
            if request is None or len(buffer) < request.end() + int(request[2]):
                continue
            buffer = b""
            streamed = request[1] == b"/stream"
            sock.sendall(STREAM_HEAD if streamed else ANSWER)
            for piece in (CHUNK,) * chunks + (b"0\r\n\r\n",) if streamed else ():
                gevent.sleep(gap_s)
                sock.sendall(piece)

    StreamServer(listener, handle).start()
    while os.getppid() == parent:
        gevent.sleep(1)


@contextmanager
def server(chunks: int, gap_s: float) -> Iterator[Server]:
    """The server, in a process of its own."""
    with socket.create_server((HOST, 0), backlog=1024) as listener:
        connections = memoryview(mmap.mmap(-1, 8)).cast("q")
        pid = os.fork()
        if pid == 0:
            try:
                serve(listener, connections, chunks, gap_s)
            finally:
                os._exit(0)
        try:
            yield Server(listener.getsockname()[1], connections)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def request(port: int, path: str) -> bytes:
    """A whole request, made as app/routing/attempt.py makes every one."""
    lines = [f"POST {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in HEADERS.items()]
    lines.append(f"content-length: {len(BODY)}")
    head = "\r\n".join(lines).encode("latin-1")
    return b"".join((head, b"\r\nhost: 127.0.0.1:%d\r\n\r\n" % port, BODY))


class Sender:
    """What an attempt is to its pool."""

    def may_repeat(self) -> bool:
        return True

    def contacts_server(self) -> None:
        pass


def own(port: int, path: str, stack: ExitStack) -> Ask:
    """Our own."""
    pool = Pool(Address(HOST, port), Resolver())
    stack.callback(pool.close)

    def ask() -> Iterator[bytes]:
        deadline = time.monotonic() + TIMEOUTS.total_s
        answer = pool.send(request(port, path), "POST", TIMEOUTS, deadline, Sender())
        try:
            yield from answer.body()
        finally:
            answer.close()

    return ask


def bare(port: int, stack: ExitStack) -> Ask:
    """Sockets of gevent's without anything around them, one for each greenlet that asks at once."""
    idle: list[socket.socket] = []
    whole = request(port, "/")

    def ask() -> Iterable[bytes]:
        sock = idle.pop() if idle else stack.enter_context(socket.create_connection((HOST, port), TIMEOUT_S))
        sock.sendall(whole)
        answer = sock.recv(1 << 16)
        idle.append(sock)
        return (answer[-len(ANSWER_BODY) :],)

    return ask


def other(port: int, clients: int, stack: ExitStack) -> HTTPClient:
    """A client of geventhttpclient's."""
    client = HTTPClient(HOST, port, concurrency=clients, network_timeout=TIMEOUT_S)
    stack.callback(client.close)
    return client


def posts(port: int, clients: int, stack: ExitStack) -> dict[str, Ask]:
    """The transports, with new connections."""
    client = other(port, clients, stack)
    pool = urllib3.HTTPConnectionPool(HOST, port, maxsize=clients, block=True, timeout=TIMEOUT_S, retries=False)
    stack.callback(pool.close)
    session = stack.enter_context(requests.Session())
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_maxsize=clients, pool_block=True))
    url = f"http://{HOST}:{port}/"
    return {
        "own": own(port, "/", stack),
        "gevent's socket": bare(port, stack),
        "geventhttpclient": lambda: (client.post("/", BODY, HEADERS).read(),),
        "urllib3": lambda: (pool.urlopen("POST", "/", BODY, HEADERS).data,),
        "requests": lambda: (session.post(url, BODY, headers=HEADERS, timeout=TIMEOUT_S).content,),
    }


def streams(port: int, clients: int, stack: ExitStack) -> dict[str, Ask]:
    """Those that are compared with a stream."""
    by_events, by_parts = other(port, clients, stack), other(port, clients, stack)

    def events() -> Iterator[bytes]:
        answer = by_events.post("/stream", BODY, HEADERS)
        while event := answer.readline(b"\n\n"):
            yield event

    def parts() -> Iterator[bytes]:
        answer = by_parts.post("/stream", BODY, HEADERS)
        while answer._body_buffer or not answer.message_complete:
            if answer._body_buffer:
                yield bytes(answer._body_buffer)
                answer._body_buffer.clear()
            elif answer._sock:
                answer.feed(answer._sock.recv(1 << 16))

    asks = {"own": own(port, "/stream", stack)}
    return asks | {"geventhttpclient: events": events, "geventhttpclient: its parts": parts}


def cpu_us(ask: Ask, each: int, clients: int) -> tuple[float, list[bytes]]:
    """This process's processor time while so many greenlets ask so many times each, and what they got."""
    got: list[bytes] = []

    def client() -> None:
        for _ in range(each):
            got.extend(ask())

    gc.collect()
    with gevent.Timeout(TIMEOUT_S):
        began = time.process_time()
        gevent.joinall([gevent.spawn(client) for _ in range(clients)], raise_error=True)
        return (time.process_time() - began) * 1e6, got


def measure(
    title: str, asks: dict[str, Ask], server: Server, each: int, units: int, size: int, args: argparse.Namespace
) -> Table:
    """Print one table. An answer is so many units, which `us` is for, and so many bytes."""
    about = f"{os.cpu_count()} cores; {args.clients} at once; medians of {args.rounds} rounds"
    heads = ("us", "x own", "spread", "sent", "made", "pieces")
    table = Table(title, *heads, drawn=heads[:2], about=about, first=29, width=9)
    print(f"\n{title}")
    times: dict[str, list[float]] = {name: [] for name in asks}
    made, pieces = Counter[str](), Counter[str]()
    sent = each * args.clients
    names = list(asks)
    for turn in range(args.rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            before = server.connections[0]
            us, got = cpu_us(asks[name], each, args.clients)
            made[name] += server.connections[0] - before
            if sum(map(len, got)) != sent * size:
                raise AssertionError(f"{name} did not read the answers")
            if turn:  # the first warms up
                times[name].append(us / sent / units)
                pieces[name] += len(got)
    for name, taken in times.items():
        figures = f"{statistics.median(taken):.1f}", ratio(taken, times["own"]), f"{max(taken) / min(taken):.2f}"
        count = pieces[name] / (sent * units * args.rounds)
        table.add(name, *figures, sent * (args.rounds + 1), made[name], f"{count:.2f}")
    return table


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description="What a POST costs by our own transport and by others.")
    parser.add_argument("--posts", type=at_least(1), default=3200, help="POSTs a transport and round (default 3200)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="the median of so many is printed (default 5)")
    parser.add_argument("--clients", type=at_least(1), default=32, help="greenlets at once (default 32)")
    parser.add_argument("--chunks", type=at_least(1), default=50, help="chunks a stream (default 50)")
    parser.add_argument("--gap-ms", type=float, default=5, help="before each chunk (default 5)")
    add_svg(parser)
    args = parser.parse_args()
    raise_file_limit(DUMMIES + 10 * args.clients)
    each = max(1, args.posts // args.clients)
    with server(args.chunks, args.gap_ms / 1000) as peer:
        print(f"{os.cpu_count()} cores, {args.clients} at once, median of {args.rounds} rounds")
        with ExitStack() as stack:
            asks = posts(peer.port, args.clients, stack)
            first = measure("a POST", asks, peer, each, 1, len(ANSWER_BODY), args)
        with ExitStack() as stack:
            for _ in range(DUMMIES):
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            asks = posts(peer.port, args.clients, stack)
            second = measure(f"a POST, {DUMMIES} other descriptors open", asks, peer, each, 1, len(ANSWER_BODY), args)
        with ExitStack() as stack:
            asks = streams(peer.port, args.clients, stack)
            third = measure("a chunk of a stream", asks, peer, 4, args.chunks, args.chunks * len(EVENT), args)
    write_svg(args.svg, first, second, third)


if __name__ == "__main__":
    main()
