"""How long the router takes from its start to its first answers, and which imports the time goes into.

    python -m tests.bench.startup [--starts 7] [--modules 24] [--help]

Starts `gunicorn -c gunicorn.conf.py` again and again, each time on a free loopback port, with 2 workers and a simulated
model that takes no time. From the moment before the process is made, every 2 ms on a new connection, GET /healthz is
asked until it answers 200, and then POST /infer. One start before those is not counted: it compiles what must be
compiled.

How to read the first table, in seconds, which `--svg` draws:

- `GET /healthz` and `POST /infer` are the times to the first 200 of each. Wanted: under 1.5.
- `python -c pass` is the yardstick: what starting the interpreter alone takes on this machine.
- `--check-config` is gunicorn's run of that name, which imports nearly all that the server imports, makes the
  application and exits in good order. If that takes about as long, the first answers take nothing but that: to listen,
  to fork and to serve costs little.

The other tables are of one more start, with one worker and `python -X importtime`, which slows it down; in
milliseconds. The first has the `--modules` that took most, in the order of their imports, each indented below the one
that imported it. `all` includes what it was the first to import, so another one may have to pay for that if it goes;
`own` is the rest. The second sums up `own` by package. Both are of every process together, the worker's own imports
included.

Everything is bounded in time, and the router is stopped also when something fails.
"""

import argparse
import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.table import Table, print_cells
from tests.support.router import GUNICORN, ROOT, Router

BODIES = {"GET /healthz": "", "POST /infer": '{"prompt": "How much is enough?"}'}
INTERVAL_S = 0.002
MOST_SECONDS = 60.0
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "--check-config": [GUNICORN, "-c", "gunicorn.conf.py", "--check-config"],
}
LINE = re.compile(r"^import time: +(\d+) \| +(\d+) \| ( *)(\S+)$", re.MULTILINE)
LEAST_MS = 2.0
"""Packages that take less are left out."""

print_row = partial(print_cells, first=50, width=10)


class Module(NamedTuple):
    """What `python -X importtime` says of one, in milliseconds."""

    own: float
    all: float
    depth: int
    name: str


class Start:
    """One start of the router, and its end; `seconds` until each first 200, and what it `printed`."""

    def __init__(self, **settings: object) -> None:
        self.seconds: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="router-bench-") as folder:
            router = Router(Path(folder), None, (), None, SIMULATED_LATENCY_MS=0, LOG_LEVEL="warning", **settings)
            began = time.perf_counter()
            router.launch()
            try:
                for asked in BODIES:
                    while not answers(router.port, asked):
                        if router.exited() or time.perf_counter() - began > MOST_SECONDS:
                            raise SystemExit(f"no 200 to {asked} within {MOST_SECONDS:g} s:\n{router.log()}")
                        time.sleep(INTERVAL_S)
                    self.seconds[asked] = time.perf_counter() - began
                self.printed = router.log()
            finally:
                router.log_path.write_text("")  # it is printed by `stop`
                router.stop()


def answers(port: int, asked: str) -> bool:
    """Whether it is answered with 200."""
    method, path = asked.split()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, BODIES[asked] or None)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def seconds_of(command: list[str]) -> float:
    """How long it runs."""
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=MOST_SECONDS)
    return time.perf_counter() - began


def modules_in(printed: str) -> list[Module]:
    """All that were imported, each before those that it imported."""
    trees: list[list[Module]] = []
    for own, everything, indent, name in LINE.findall(printed):
        module = Module(int(own) / 1000, int(everything) / 1000, len(indent) // 2, name)
        tree: list[Module] = []
        while trees and trees[-1][0].depth > module.depth:  # Python prints a module after those that it imported
            tree = trees.pop() + tree
        trees.append([module, *tree])
    return [module for tree in trees for module in tree]


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description="Seconds to the first answers, and the imports they go into.")
    parser.add_argument("--starts", type=at_least(1), default=7, help="that are measured (default 7)")
    parser.add_argument("--modules", type=at_least(1), default=24, help="rows of the table of imports (default 24)")
    parser.add_argument("--workers", type=at_least(1), default=2, help="WEB_CONCURRENCY (default 2)")
    add_svg(parser)
    args = parser.parse_args()
    Start()
    starts = [Start(WEB_CONCURRENCY=args.workers) for _ in range(args.starts)]
    heads = ("median", "worst")
    table = Table(f"Seconds, {args.starts} times", *heads, drawn=heads, first=50, width=10)
    for name, command in COMMANDS.items():
        times = [seconds_of(command) for _ in range(args.starts)]
        table.add(name, f"{statistics.median(times):.3f}", f"{max(times):.3f}")
    for asked in BODIES:
        times = [start.seconds[asked] for start in starts]
        table.add(f"first 200 of {asked}", f"{statistics.median(times):.3f}", f"{max(times):.3f}")
    write_svg(args.svg, table)

    modules = modules_in(Start(WEB_CONCURRENCY=1, PYTHONPROFILEIMPORTTIME=1).printed)
    print()
    print_row(f"{len(modules)} imports, milliseconds", "all", "own")
    least = sorted((module.all for module in modules), reverse=True)[: args.modules][-1]
    for module in modules:
        if module.all >= least:
            print_row("  " * module.depth + module.name, f"{module.all:.1f}", f"{module.own:.1f}")
    packages: Counter[str] = Counter()
    for module in modules:
        packages[module.name.partition(".")[0]] += module.own  # type: ignore[assignment]
    print()
    print_row("package", "own")
    for package, own in packages.most_common():
        if own >= LEAST_MS:
            print_row(package, f"{own:.1f}")


if __name__ == "__main__":
    main()
