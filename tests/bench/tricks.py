"""What each trick of the request path buys: a proxied request with it, and without.

    python -m tests.bench.tricks [--rounds 5] [--seconds 3] [--connections 64] [TRICK...]

The real router before a model server that costs nothing (go/upstream, from `make peers`), loaded by wrk with chat
completions, once as it is (`all`) and once with each trick left out (without.py says how). In each round every row has
its turn, so the machine's moods fall on all of them.

    fast_path        reading with one match and writing with one call (else: gunicorn's parser and response)
    timed_sockets    waiting with a watcher and a timer that are kept (else: gevent's sockets and timeouts)
    metric_cells     writing prometheus-client's files directly (else: its own methods)
    no_cycles        letting go of a request when it ends (else: the collector finds it)
    frozen           keeping what was made before the fork from the collector
    pacing           few requests begin in a cycle; it is there for overload, and saves nothing here

Then without what must be there, to see its share of a request:

    metrics          counting and observing
    limiter          taking and giving back a permit
    signals          what is counted of each model: its requests, and tokens (signals.py has the streams)

How to read it: `CPU us` are microseconds of the router's processor time for a request, medians of the rounds. `x all`
is the median of the rounds' ratios to the first row: 1.10 says that a request costs a tenth more without the trick,
0.95 that the part takes a twentieth. `p99 ms` and `requests/s` as wrk saw them.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

from tests.bench.machine import CORES
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.routers import BODY, MODEL, PATH
from tests.bench.side_by_side import Load, Program, go_program, in_turn, prepare, run_load, warm_up
from tests.bench.table import Table, ratio
from tests.support.ports import free_port
from tests.support.router import GUNICORN, ROOT

ALL = "all"
TRICKS = (
    "fast_path",
    "timed_sockets",
    "metric_cells",
    "no_cycles",
    "frozen",
    "pacing",
    "metrics",
    "limiter",
    "signals",
)


def measure(trick: str, upstream: Program, folder: Path, args: argparse.Namespace) -> Load:
    """The router without this trick, under load."""
    port = free_port()
    settings = {"BIND": f"127.0.0.1:{port}", "MODEL_REF": MODEL, "BACKENDS": upstream.url, "MAX_CONCURRENCY": 1000}
    settings |= {"WEB_CONCURRENCY": CORES, "LOG_LEVEL": "error", "GRACEFUL_TIMEOUT_S": 5}
    command = [GUNICORN, "--chdir", str(ROOT), "-c", "python:tests.bench.without"]
    with Program(command, folder, port, **settings, TRICK=trick, PYTHONPATH=str(ROOT)) as router:
        router.wait_for_answer(PATH, BODY)
        warm_up(router, PATH, [BODY], args.connections)
        return run_load(router, PATH, [BODY], args.connections, args.seconds)


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=5, help="turns of each (default 5)")
    parser.add_argument("--seconds", type=at_least(1), default=3, help="measured seconds a turn (default 3)")
    parser.add_argument("--connections", type=at_least(1), default=64, help="requests at a time (default 64)")
    add_svg(parser)
    parser.add_argument("tricks", nargs="*", metavar="TRICK", help=f"of {', '.join(TRICKS)} (default: all)")
    args = parser.parse_args()
    for trick in args.tricks:
        if trick not in TRICKS:
            parser.error(f"no trick is called {trick}; there are {', '.join(TRICKS)}")
    prepare(args.connections)
    with tempfile.TemporaryDirectory(prefix="router-bench-") as temporary:
        folder = Path(temporary)
        with go_program("upstream", folder) as upstream:
            upstream.wait_for_answer(PATH, BODY)
            names = [ALL, *(args.tricks or TRICKS)]
            loads = in_turn(names, args.rounds, lambda name: measure(name, upstream, folder, args))
    about = f"{args.connections} connections; medians of {args.rounds} rounds of {args.seconds} s"
    print(f"{about}\n")
    heads = ("CPU us", "x all", "requests/s", "p99 ms", "errors")
    table = Table("A proxied request without one trick", *heads, drawn=heads[:2], about=about, corner="without")
    whole = [load.cpu_us for load in loads[ALL]]
    for name, rounds in loads.items():
        costs = [load.cpu_us for load in rounds]
        table.add(
            "nothing" if name == ALL else name,
            f"{median(costs):.1f}",
            ratio(costs, whole),
            f"{median(load.rate for load in rounds):.0f}",
            f"{median(load.p99_ms for load in rounds):.1f}",
            sum(load.errors for load in rounds),
        )
    write_svg(args.svg, table)


if __name__ == "__main__":
    main()
