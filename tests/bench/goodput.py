"""Goodput under overload: how much of what the cap allows is served while many more clients ask for it.

    python -m tests.bench.goodput [--seconds 10] [--retry-pause-ms 1000] [--help]

Starts the real router on a free loopback port (2 workers, cap 256, a simulated model of 100 ms) and loads POST /infer
with wrk, which keeps every client's connection open and asks again as soon as it is answered:

    at the cap      256 clients     nobody is refused: what this machine can do at all
    overload        512 clients     twice what the cap allows
    10 x overload   5120 clients

The overloads run twice. **Naive** clients ask again at once after a 429. That is the worst client there is, and it is
as hungry as the router: wrk and the workers share the machine's cores, so on a small one this row measures who gets
them. **Patient** clients first wait as they are told to: `Retry-After` is 1 second here, so `--retry-pause-ms` is 1000,
spread evenly over half to one and a half of that so that they don't come back together.

How to read it:

- `200/s`: goodput, answers with status 200 in the measured seconds; the seconds before, when connections are made, are
  left out. `of cap` is its share of cap / latency = 2560 a second, which no router could exceed. To hope for: 0.95.
- `of b` is its share of the row `overload` with the same clients: what ten times the clients cost.
- `429/s`: rejections in the same seconds. `else` counts answers with any other status, `broken` connections that failed
  (also before the measured seconds); both should be 0.
- `cores`: processor time of the workers, in cores. Where it and wrk's own use up what the machine has, `200/s` below
  the cap says that the processor is the limit.
- Probes are asked every 100 ms, on a new connection each time, as Kubernetes does, and `kept` on one that is kept, as
  Prometheus does. Times are milliseconds, from before the connection to the last byte, during the load. `failed` are
  those that took over 5 s or had another status than 200.

Everything is bounded in time, and the router is stopped also when something fails.
"""

import argparse
import http.client
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tests.bench.machine import CORES, cpu_seconds, raise_file_limit, require_wrk
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.table import Table
from tests.support.router import Router, until

SCRIPT = Path(__file__).with_suffix(".lua")
PROBES = ("/healthz", "/readyz", "/metrics")
PROBE_TIMEOUT_S = 5.0
PROBE_INTERVAL_S = 0.1
WARM_UP_S = 6
THREADS = 2


class Clients(NamedTuple):
    """How many ask, and how soon they ask again."""

    name: str
    number: int
    pause_ms: int


class Outcome(NamedTuple):
    """What the clients saw, and what it took."""

    served_a_second: float
    refused_a_second: float
    others: int
    broken: int
    cores: float


class Probing:
    """Asks for one path again and again until told to stop, and keeps how long each answer took."""

    def __init__(self, port: int, path: str, *, kept: bool) -> None:
        self.path = path
        self.name = f"{path} kept" if kept else path
        self._kept = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S) if kept else None
        self.times: list[float] = []
        self.failed = 0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; returns when the last answer is in."""
        self._stop.set()
        self._thread.join(PROBE_TIMEOUT_S + 1)

    def _run(self) -> None:
        while not self._stop.wait(PROBE_INTERVAL_S):
            began = time.perf_counter()
            if self._ask():
                self.times.append(time.perf_counter() - began)
            else:
                self.failed += 1

    def _ask(self) -> bool:
        connection = self._kept or http.client.HTTPConnection("127.0.0.1", self._port, timeout=PROBE_TIMEOUT_S)
        try:
            connection.request("GET", self.path)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # one that is kept opens itself anew
            return False
        else:
            return answer.status == 200
        finally:
            if connection is not self._kept:
                connection.close()


def percentile(times: list[float], share: float) -> float:
    """The least time that this share of all is not above; 0 without any."""
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)] if times else 0.0


def load(router: Router, clients: Clients, seconds: float) -> Outcome:
    """Load the router with wrk, and count what was answered in the measured seconds."""
    began = time.monotonic()
    measured_from, measured_to = began + WARM_UP_S, began + WARM_UP_S + seconds
    duration = math.ceil(WARM_UP_S + seconds + 1)
    command = ["wrk", f"-t{THREADS}", f"-c{clients.number}", f"-d{duration}s", "--timeout", "10s", "-s", str(SCRIPT)]
    command += [f"{router.url}/infer", "--", str(measured_from), str(measured_to), str(clients.pause_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as wrk:
        try:
            time.sleep(WARM_UP_S)
            cpu_before = cpu_seconds(*router.workers())
            time.sleep(seconds)
            cores = (cpu_seconds(*router.workers()) - cpu_before) / (time.monotonic() - measured_from)
            output, _ = wrk.communicate(timeout=60)
        finally:
            wrk.kill()
    results = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if wrk.returncode or not results:
        raise SystemExit(f"wrk failed:\n{output}")
    served, refused, others, broken = (int(number) for number in results[0].split()[1:])
    return Outcome(served / seconds, refused / seconds, others, broken, cores)


def load_and_probe(router: Router, clients: Clients, seconds: float) -> tuple[Outcome, list[Probing]]:
    """Load the router, and ask the probes meanwhile."""
    probings = [Probing(router.port, path, kept=kept) for path in PROBES for kept in (False, True)]
    for probing in probings:
        probing.start()
    outcome = load(router, clients, seconds)
    for probing in probings:
        probing.stop()
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "nothing is in flight after a load")
    return outcome, probings


def measure(router: Router, args: argparse.Namespace) -> list[Table]:
    """Run every load, one after the other, and print the two tables."""
    possible = args.cap * 1000 / args.latency_ms
    overload, tenfold = 2 * args.cap, 20 * args.cap
    crowds = [Clients("a at the cap", args.cap, 0)]
    for who, pause_ms in (("naive", 0), ("patient", args.retry_pause_ms)):
        crowds.append(Clients(f"b overload, {who}", overload, pause_ms))
        crowds.append(Clients(f"c 10 x overload, {who}", tenfold, pause_ms))
    print(f"{os.cpu_count()} cores; cap {args.cap}, model {args.latency_ms} ms: at most {possible:.0f} responses/s")
    print(f"{args.seconds:g} s each; patient clients pause {args.retry_pause_ms} ms after a 429\n")
    about = f"cap {args.cap}, model {args.latency_ms} ms; {args.seconds:g} s each"
    heads = ("clients", "200/s", "of cap", "of b", "429/s", "else", "broken", "cores")
    drawn = ("200/s", "429/s", "cores")
    goodput = Table("Goodput under overload", *heads, drawn=drawn, about=about, first=26, width=9)
    probed: list[tuple[Clients, list[Probing]]] = []
    of_b: dict[int, float] = {}
    for clients in crowds:
        outcome, probings = load_and_probe(router, clients, args.seconds)
        probed.append((clients, probings))
        served = outcome.served_a_second
        if clients.number == overload:
            of_b[clients.pause_ms] = served
        share_of_b = f"{served / of_b[clients.pause_ms]:.3f}" if clients.number == tenfold else ""
        rates = (f"{served:.0f}", f"{served / possible:.3f}", share_of_b, f"{outcome.refused_a_second:.0f}")
        goodput.add(clients.name, clients.number, *rates, outcome.others, outcome.broken, f"{outcome.cores:.2f}")
    print()
    columns = ("count", "p50 ms", "p99 ms", "most ms", "failed")
    times = Table(
        "Probes under overload", *columns, drawn=columns[1:4], about=about, corner="probes", first=48, width=9
    )
    for clients, probings in probed:
        for probing in probings:
            shares = (f"{percentile(probing.times, share) * 1000:.1f}" for share in (0.5, 0.99, 1.0))
            times.add(f"{clients.name}: {probing.name}", len(probing.times), *shares, probing.failed)
    return [goodput, times]


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description="Goodput under overload, and how long probes take meanwhile.")
    parser.add_argument("--seconds", type=float, default=10, help="measured seconds a load (default 10)")
    parser.add_argument(
        "--retry-pause-ms", type=at_least(1), default=1000, help="patient clients' pause (default 1000)"
    )
    parser.add_argument("--cap", type=at_least(1), default=256, help="MAX_CONCURRENCY (default 256)")
    parser.add_argument("--latency-ms", type=at_least(1), default=100, help="SIMULATED_LATENCY_MS (default 100)")
    parser.add_argument("--queue-size", type=at_least(0), default=0, help="QUEUE_SIZE (default 0)")
    add_svg(parser)
    args = parser.parse_args()
    require_wrk()
    raise_file_limit(20 * args.cap)
    with tempfile.TemporaryDirectory(prefix="router-bench-") as folder:
        router = Router(
            Path(folder),
            MAX_CONCURRENCY=args.cap,
            SIMULATED_LATENCY_MS=args.latency_ms,
            WEB_CONCURRENCY=CORES,
            QUEUE_SIZE=args.queue_size,
            ACCESS_LOG="off",
            LOG_LEVEL="warning",
            GRACEFUL_TIMEOUT_S=5,
            PROMETHEUS_MULTIPROC_DIR=f"{folder}/metrics",
        )
        with router:  # which kills what is left at the end
            try:
                write_svg(args.svg, *measure(router, args))
            finally:
                router.signal(signal.SIGTERM)
                router.wait_exit(20)


if __name__ == "__main__":
    main()
