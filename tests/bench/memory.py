"""What a waiting request costs in memory, and whether the workers grow over many requests.

    python -m tests.bench.memory [--waiting 5000] [--requests 2000000] [--proxied] [--help]

Starts the real router on a free loopback port, 2 workers. What is counted is the workers' private memory, all of them
together: Private_Clean and Private_Dirty of /proc/PID/smaps_rollup. The kernel's memory (sockets and their buffers) is
not in it, nor what a worker still shares with the arbiter.

**Waiting** (`--waiting 0` leaves it out). So many clients, each on a connection of its own, ask and wait: first for a
chat completion from a model server in this process that answers nobody until all are there, then for `/infer` of a
simulated model that takes `--hold` seconds. A warm-up, in which 64 wait, has made before what is made once. At the end
all must be answered with 200, or the bench fails.

- `KiB each` is what has been added since nobody waited, by those who wait. Wanted: under 25 in the last row.
- `of these` is the same for those who came since the row above. What is paid once, such as pages that were shared with
  the arbiter until the garbage collector wrote to them, is in one row and not in the others.
- The row `answered` is what the workers keep when all are answered and gone, for those who come next.

**Flatness** (`--requests 0` leaves it out). wrk asks as fast as 64 connections can, for `/infer` of a simulated model
that takes no time, or with `--proxied` for a chat completion of the model server in this process.

- A row is a sample while the load runs, so it may be off by what 64 requests take.
- The last line is the least-squares slope of the private memory over the second half. Wanted: no growth, so a slope
  about 0, of either sign. One byte a request is a megabyte in a million. A short run says little: what is made once,
  and caches that have a bound, are still being filled.
- `descriptors`, the workers' open files, must not grow either. `failed`, errors and broken connections, should be 0.

Everything is bounded in time; router and wrk are stopped also when something fails.
"""

import argparse
import asyncio
import http.client
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.bench.machine import CORES, raise_file_limit, require_wrk
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.table import Table
from tests.support.router import Router, until

CHAT = "/v1/chat/completions"
INFER = "/infer"
BODIES = {
    CHAT: '{"model": "m", "messages": [{"role": "user", "content": "How much is enough?"}]}',
    INFER: '{"prompt": "How much is enough?"}',
}
COMPLETION = b'{"object": "chat.completion", "model": "m", "choices": [{"message": {"content": "Less."}}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(COMPLETION)
CONNECTIONS = 64
AT_ONCE = 250
"""Clients that connect before it is seen whether they have been let in: fewer than an accept queue holds."""
LOTS = 5
SAMPLES = 20


class ModelServer:
    """Answers every request at once, or holds those that are no health checks until it is told to let go."""

    def __init__(self) -> None:
        self.url = ""
        self.held = 0
        self._go = asyncio.Event()
        self._end = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()
        until(lambda: self.url, "the model server listens")

    def close(self) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def hold(self, on: bool) -> None:
        """Let nobody go from now on; or everybody, now and from now on."""
        self._loop.call_soon_threadsafe(self._go.clear if on else self._go.set)

    async def _run(self) -> None:
        self._go.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await self._end.wait()
        server.close()
        for task in (others := asyncio.all_tasks() - {asyncio.current_task()}):
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: *(\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                if not head.startswith(b"GET "):
                    self.held += 1
                    await self._go.wait()
                    self.held -= 1
                writer.write(ANSWER + COMPLETION)
        writer.close()


class Crowd:
    """Clients that have asked and wait, each on a connection of its own."""

    def __init__(self, router: Router, path: str, model: ModelServer | None) -> None:
        self._router = router
        self._path = path
        self._model = model
        self._clients: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Hang up."""
        for client in self._clients:
            client.close()

    def grow(self, size: int) -> None:
        """Have more ask until there are so many; returns when all wait inside."""
        if self._model is not None:
            self._model.hold(True)
        while len(self._clients) < size:
            for _ in range(min(AT_ONCE, size - len(self._clients))):
                client = http.client.HTTPConnection("127.0.0.1", self._router.port, timeout=60)
                self._clients.append(client)
                client.request("POST", self._path, BODIES[self._path], {"Content-Type": "application/json"})
            until(self.all_wait, f"{len(self._clients)} wait (answered by then? give a longer --hold)")

    def all_wait(self) -> bool:
        """Whether none is still coming and none has been answered."""
        waiting = len(self._clients)
        return self._inflight() == waiting and (self._model is None or self._model.held == waiting)

    def answered(self, seconds: float) -> int:
        """How many are answered with 200 within this time; then all leave."""
        if self._model is not None:
            self._model.hold(False)
        deadline = time.monotonic() + seconds
        good = 0
        while self._clients:
            with closing(self._clients.pop()) as client, suppress(OSError, http.client.HTTPException):
                client.sock.settimeout(max(0.01, deadline - time.monotonic()))
                answer = client.getresponse()
                good += bool(answer.read()) and answer.status == 200
        until(lambda: self._inflight() == 0, "nothing is in flight at the end")
        return good

    def _inflight(self) -> float:
        return self._router.metrics()["router_inflight_requests"]


class Sample(NamedTuple):
    """What the workers have at a moment, all together."""

    kib: int
    descriptors: int


def sample(pids: list[int]) -> Sample:
    """See Sample."""
    rollups = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    private = re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB$", rollups, re.MULTILINE)
    return Sample(sum(map(int, private)), sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids))


@contextmanager
def router_for(args: argparse.Namespace, **settings: object) -> Iterator[Router]:
    """A router with room for everybody."""
    settings |= {"MAX_CONCURRENCY": max(args.waiting, 1000), "WEB_CONCURRENCY": CORES, "MODEL_REF": "m"}
    settings |= {"ACCESS_LOG": "off", "LOG_LEVEL": "warning", "GRACEFUL_TIMEOUT_S": 5}
    with (
        tempfile.TemporaryDirectory(prefix="router-bench-") as folder,
        Router(Path(folder), None, (), None, **settings) as router,  # which kills what is left at the end
    ):
        try:
            yield router
        finally:
            router.signal(signal.SIGTERM)
            router.wait_exit(20)


def measure_waiting(router: Router, path: str, args: argparse.Namespace, model: ModelServer | None = None) -> Table:
    """Have the clients come in lots, and print what each lot adds."""
    pids = router.workers()
    heads = ("MiB", "KiB each", "of these", "descriptors")
    table = Table(f"Memory of requests to {path} that wait", *heads, drawn=heads[:2], corner=path, width=13)
    with closing(Crowd(router, path, model)) as crowd:
        crowd.grow(CONNECTIONS)
        crowd.answered(args.hold + 60)
        first = before = sample(pids)
        table.add("nobody", f"{first.kib / 1024:.1f}", "", "", first.descriptors)
        came = 0
        for size in (args.waiting * lot // LOTS for lot in range(1, LOTS + 1)):
            crowd.grow(size)
            now = sample(pids)
            each, of_these = (now.kib - first.kib) / size, (now.kib - before.kib) / (size - came)
            table.add(f"{size} wait", f"{now.kib / 1024:.1f}", f"{each:.1f}", f"{of_these:.1f}", now.descriptors)
            before, came = now, size
        if not crowd.all_wait():
            raise SystemExit("some were answered before all of them waited: give a longer --hold")
        good = crowd.answered(args.hold + 60)
    left = sample(pids)
    table.add("answered", f"{left.kib / 1024:.1f}", "", "", left.descriptors)
    if good != args.waiting or router.workers() != pids:
        raise SystemExit(f"{good} of {args.waiting} were answered with 200, or a worker died")
    print(f"all {good} were answered with 200\n")
    return table


@contextmanager
def load(router: Router, path: str, seconds: int) -> Iterator[subprocess.Popen[str]]:
    """wrk asks, at the longest for so many seconds."""
    script = router.log_path.with_suffix(".lua")
    script.write_text(f"wrk.method, wrk.body = 'POST', '{BODIES[path]}'")
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
    with subprocess.Popen([*command, router.url + path], stdout=subprocess.PIPE, text=True) as wrk:
        try:
            yield wrk
        finally:
            wrk.kill()


def measure_flatness(router: Router, path: str, args: argparse.Namespace) -> Table:
    """Load the router, and print samples and the slope."""
    pids = router.workers()
    heads = ("MiB", "requests/s", "descriptors")
    table = Table(f"Memory over many requests to {path}", *heads, drawn=heads[::2], corner=path, width=13)
    taken: list[tuple[float, Sample]] = []
    began = time.monotonic()
    with load(router, path, args.most_seconds + 60) as wrk:
        while not taken or taken[-1][0] < args.requests:
            served = sum(n for name, n in router.metrics().items() if name.startswith("router_requests_total"))
            if served >= args.requests * len(taken) / SAMPLES:
                now = sample(pids)
                rate = served / (time.monotonic() - began)
                table.add(f"{served:.0f} served", f"{now.kib / 1024:.2f}", f"{rate:.0f}", now.descriptors)
                taken.append((served, now))
            elif time.monotonic() > began + args.most_seconds or wrk.poll() is not None:
                raise SystemExit(f"not done within {args.most_seconds} s (see --most-seconds), or wrk died")
            time.sleep(0.1)
        wrk.send_signal(signal.SIGINT)
        report, _ = wrk.communicate(timeout=30)
    if router.workers() != pids:
        raise SystemExit("a worker died")
    failures = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", report)
    half = [(served, now) for served, now in taken if served >= args.requests / 2]
    slope = statistics.linear_regression([served for served, _ in half], [now.kib * 1024 for _, now in half]).slope
    print(f"second half: {slope:+.3f} bytes a request; failed: {sum(map(int, failures))}\n")
    return table


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description="Memory a waiting request, and growth over many.")
    parser.add_argument(
        "--waiting", type=at_least(0), default=5000, help="requests that wait at once, or 0 (default 5000)"
    )
    parser.add_argument(
        "--hold", type=at_least(1), default=20, help="seconds that the simulated model takes (default 20)"
    )
    parser.add_argument("--requests", type=at_least(0), default=2_000_000, help="of the load, or 0 (default 2000000)")
    parser.add_argument("--proxied", action="store_true", help="load with proxied chat completions")
    parser.add_argument("--most-seconds", type=at_least(1), default=1800, help="that the load may take (default 1800)")
    add_svg(parser)
    args = parser.parse_args()
    if 0 < args.waiting < LOTS:
        parser.error(f"--waiting must be 0 or at least {LOTS}")
    if args.requests:
        require_wrk()
    raise_file_limit(2 * args.waiting)  # for the clients and the model server; the workers have their own
    tables = []
    with closing(ModelServer()) as model:
        proxied, simulated = {"BACKENDS": model.url}, {"SIMULATED_LATENCY_MS": args.hold * 1000}
        if args.waiting:
            with router_for(args, **proxied) as router:
                tables.append(measure_waiting(router, CHAT, args, model))
            with router_for(args, **simulated) as router:
                tables.append(measure_waiting(router, INFER, args))
        if args.requests:
            with router_for(args, **(proxied if args.proxied else {"SIMULATED_LATENCY_MS": 0})) as router:
                tables.append(measure_flatness(router, CHAT if args.proxied else INFER, args))
    write_svg(args.svg, *tables)


if __name__ == "__main__":
    main()
