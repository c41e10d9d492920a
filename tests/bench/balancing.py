"""What each balancing policy buys over three endpoints of unequal speed.

    python -m tests.bench.balancing [--seconds 8] [--clients 24]

Starts three model servers (this project's simulated model: 8 requests at a time, in 25, 50 and 100 ms, others wait), a
real router before them for each policy in turn, and loads chat completions with wrk: clients that ask again as soon as
they are answered, in 200 sessions, each with a prompt that begins like the others of its session.

How to read it: `of best` is the throughput as a share of the best row's. `fast`, `middle` and `slow` are the shares of
the answers that each endpoint gave; by their capacities they could take 0.57, 0.29 and 0.14. `stray` is the share of
the requests that went to another endpoint than most of their session's did: what a server's prefix cache would miss.
Only ratios within one run mean anything.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.machine import require_wrk
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.table import Table
from tests.support.router import Router

SCRIPT = Path(__file__).with_suffix(".lua")
LATENCIES_MS = {"fast": 25, "middle": 50, "slow": 100}
POLICIES = ("least_inflight", "p2c", "round_robin", "session", "prefix", "prefix_hash")
QUIET: dict[str, Any] = {"ACCESS_LOG": "off", "LOG_LEVEL": "warning"}


class Row(NamedTuple):
    """What was measured of a policy."""

    policy: str
    served_a_second: float
    failed: int
    p50_ms: float
    p99_ms: float
    shares: list[float]
    stray: float


@contextmanager
def model_servers(folder: Path) -> Iterator[list[str]]:
    """The three of them; answers their URLs. Each calls its model by its own name, so that its answers tell."""
    with ExitStack() as stack:
        urls = []
        for name, latency in LATENCIES_MS.items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps({"models": [{"name": name, "aliases": ["m"], "protocol": "simulated"}]}))
            server = Router(
                folder,
                ROUTES_FILE=file,
                SIMULATED_LATENCY_MS=latency,
                MAX_CONCURRENCY=8,
                QUEUE_SIZE=1000,
                QUEUE_TIMEOUT_MS=60_000,
                WEB_CONCURRENCY=1,
                **QUIET,
            )
            urls.append(stack.enter_context(server).url)
        yield urls


def measure(policy: str, urls: list[str], folder: Path, clients: int, seconds: int) -> Row:
    """One policy under load."""
    model = {"name": "m", "balancing": policy, "endpoints": urls, "health_check": {"interval_s": 0}}
    if policy == "session":
        model["session_header"] = "X-Session"
    file = folder / "routes.json"
    file.write_text(json.dumps({"models": [model]}))
    with Router(folder, ROUTES_FILE=file, MAX_CONCURRENCY=1000, **QUIET) as router:
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(SCRIPT), router.url]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30)
    found = re.search(r"served=(\d+) failed=(\d+) p50=(\d+) p99=(\d+) us=(\d+)", run.stdout)
    assert found, run.stdout
    served, failed, p50, p99, duration = map(int, found.groups())
    by_endpoint: Counter[str] = Counter()
    by_session: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for session, endpoint, count in re.findall(r"^count (\d+) (\w+) (\d+)$", run.stdout, re.MULTILINE):
        by_endpoint[endpoint] += int(count)
        by_session[session][endpoint] += int(count)
    at_home = sum(max(endpoints.values()) for endpoints in by_session.values())
    return Row(
        policy,
        served / duration * 1e6,
        failed,
        p50 / 1e3,
        p99 / 1e3,
        [by_endpoint[name] / by_endpoint.total() for name in LATENCIES_MS],
        1 - at_home / by_endpoint.total(),
    )


def main() -> None:
    """Measure every policy and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=at_least(1), default=8)
    parser.add_argument("--clients", type=at_least(1), default=24)
    add_svg(parser)
    options = parser.parse_args()
    require_wrk()
    with tempfile.TemporaryDirectory() as name, model_servers(Path(name)) as urls:
        rows = [measure(policy, urls, Path(name), options.clients, options.seconds) for policy in POLICIES]
    best = max(row.served_a_second for row in rows)
    heads = ("responses/s", "of best", "p50 ms", "p99 ms", *LATENCIES_MS, "stray", "failed")
    about = f"{options.clients} clients, {options.seconds} s each"
    drawn = ("responses/s", "p99 ms", "stray")
    table = Table("Policies over three endpoints of unequal speed", *heads, drawn=drawn, about=about, corner="policy")
    for row in rows:
        table.add(
            row.policy,
            f"{row.served_a_second:.0f}",
            f"{row.served_a_second / best:.2f}",
            f"{row.p50_ms:.0f}",
            f"{row.p99_ms:.0f}",
            *(f"{share:.2f}" for share in row.shares),
            f"{row.stray:.2f}",
            row.failed,
        )
    write_svg(options.svg, table)


if __name__ == "__main__":
    main()
