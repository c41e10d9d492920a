"""What it costs to count: prometheus-client's own methods in multi-process mode, and app/metric_cells.py beside them.

    python -m tests.bench.metrics [--svg FILE.svg]

One process, one child each, the least of five repeats. The last column is the time in empty Python function calls.
"""

import argparse
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram

from app.observability.metric_cells import Count, Distribution
from app.observability.metrics import SECONDS, keep_files_per_slot
from tests.bench.options import add_svg
from tests.bench.plot import write_svg
from tests.bench.table import Table

REPEATS = 5
TIMES = 100_000


def nanoseconds(work: Callable[[], object]) -> float:
    """The time of one call."""
    return min(timeit.repeat(work, number=TIMES, repeat=REPEATS)) / TIMES * 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What it costs to count, beside an empty function call.")
    add_svg(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keep_files_per_slot(Path(folder), lambda: 0)
        registry = CollectorRegistry()
        counter = Counter("c_total", "c", ("l",), registry=registry).labels("x")
        histogram = Histogram("h", "h", ("l",), registry=registry, buckets=SECONDS).labels("x")
        count, distribution = Count(counter), Distribution(histogram)
        empty = nanoseconds(lambda: None)
        rows = [
            ("prometheus-client: Counter.inc", nanoseconds(counter.inc)),
            ("Count.inc", nanoseconds(count.inc)),
            ("prometheus-client: Histogram.observe", nanoseconds(lambda: histogram.observe(0.1))),
            ("Distribution.observe", nanoseconds(lambda: distribution.observe(0.1))),
        ]
    about = f"one process; the least of {REPEATS} repeats"
    table = Table("Counting", "ns", "x call", drawn=("ns",), about=about, first=40)
    for name, taken in [("empty call", empty), *rows]:
        table.add(name, f"{taken:,.0f}", f"{taken / empty:.0f}")
    write_svg(args.svg, table)


if __name__ == "__main__":
    main()
