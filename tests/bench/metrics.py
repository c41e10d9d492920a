"""What it costs to count: prometheus-client's own methods in multi-process mode, and app/metric_cells.py beside them.

    python -m tests.bench.metrics

One process, one child each, the least of five repeats. The last column is the time in empty Python function calls.
"""

import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram

from app.observability.metric_cells import Count, Distribution
from app.observability.metrics import SECONDS, keep_files_per_slot

REPEATS = 5
TIMES = 100_000


def nanoseconds(work: Callable[[], object]) -> float:
    """The time of one call."""
    return min(timeit.repeat(work, number=TIMES, repeat=REPEATS)) / TIMES * 1e9


def main() -> None:
    """Measure and print."""
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
    print("| | ns | x empty call |\n|---|---:|---:|")
    for name, taken in [("empty function call", empty), *rows]:
        print(f"| {name} | {taken:,.0f} | {taken / empty:.0f} |")


if __name__ == "__main__":
    main()
