"""What a scrape costs, and how long it keeps the event loop: beside prometheus-client's own collector and exposition.

    python -m tests.bench.scrape
    python -m tests.bench.scrape --models 1000 --endpoints 2000

Files as the workers write them, for routes with many models and endpoints. Each round makes a page in each way, after
every worker has counted something for every model and endpoint. CPU is that of a page. The longest turn is the time
between two polls of the event loop, as its own watchers see it, in CPU time too. `first` is the first page of a worker,
which parses the keys. `x` is the ratio to prometheus-client's.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import gevent
from gevent import get_hub

from app.observability.endpoint_gauges import EndpointState
from app.observability.metric_cells import forget_cells
from app.observability.metrics import Metrics, SharedState, keep_files_per_slot
from app.observability.model_gauges import ModelState
from app.protocols.token_usage import TokenUsage
from tests.bench.options import at_least
from tests.support.metric_pages import library_page

CODES = (200, 400, 429, 503)


class Workers:
    """Their files."""

    def __init__(self, folder: Path, models: int, endpoints: int, workers: int) -> None:
        self.models = [f"organization/model-{number}-instruct" for number in range(models)]
        self.urls = [f"http://10.0.{number // 250}.{number % 250}:8000" for number in range(endpoints)]
        self._workers = workers
        self._slot = 0
        keep_files_per_slot(folder, lambda: self._slot)
        self._counted = Metrics(folder)

    def state(self) -> SharedState:
        """Returns what the gauges say."""
        models = [ModelState(name, 1, 0, 500, 7, 1.5) for name in self.models]
        return SharedState(3, 0, 500, self._workers, 0, 0, [EndpointState(url, 1, True) for url in self.urls], models)

    def count(self, seconds: float) -> None:
        """Every worker counts requests to every model and endpoint."""
        metrics = self._counted
        for slot in range(self._workers):
            self._slot = slot
            forget_cells()
            metrics.overhead_seconds.observe(seconds)
            for model in self.models:
                for code in CODES:
                    metrics.requests("/v1/chat/completions", model, code).inc()
                metrics.request_seconds("/v1/chat/completions", model).observe(seconds)
                for of_model in (metrics.model_seconds, metrics.first_byte_seconds, metrics.upstream_seconds):
                    of_model(model).observe(seconds)
                for of_streams in (
                    metrics.token_metrics.first_token_seconds,
                    metrics.token_metrics.inter_token_seconds,
                ):
                    of_streams(model).observe(seconds)
                metrics.token_metrics.count(model, TokenUsage(100, 50, 20, 10))
                metrics.token_metrics.count_events(model, 50)
            for url in self.urls:
                for code in CODES:
                    metrics.endpoint_requests(url, code).inc()


class Cost(NamedTuple):
    """Of one page."""

    cpu_ms: float
    turn_ms: float
    size: int


@contextmanager
def turns_of_the_loop() -> Iterator[list[float]]:
    """Yields a list to which the duration of every turn of the event loop is appended, in seconds.

    The loop does not block in the meantime, so a turn is what lies between two polls. It is measured in CPU time:
    other processes of the machine make none longer.
    """
    loop = get_hub().loop
    turns: list[float] = []
    began = time.thread_time()

    def polled() -> None:
        nonlocal began
        now = time.thread_time()
        turns.append(now - began)
        began = now

    never_blocks, after_poll = loop.idle(ref=False), loop.check(ref=False)
    never_blocks.start(lambda: None)
    after_poll.start(polled)
    yield turns
    never_blocks.close()
    after_poll.close()


def cost_of(make_page: Callable[[], bytes]) -> Cost:
    """Make a page in a greenlet."""
    with turns_of_the_loop() as turns:
        gevent.sleep(0.001)
        turns.clear()
        began = time.process_time()
        page = gevent.spawn(make_page).get()
        cpu = time.process_time() - began
        gevent.sleep(0.001)
    return Cost(cpu * 1e3, max(turns) * 1e3, len(page))


def measure(folder: Path, workers: Workers, rounds: int) -> dict[str, list[Cost]]:
    """Returns the costs of every round, by the way in which the page was made."""
    kept = Metrics(folder)
    kept.page(workers.state(), "")
    costs: dict[str, list[Cost]] = {"prometheus-client": [], "router, first": [], "router": []}
    for number in range(rounds):
        workers.count(0.01 * number)
        fresh, state = Metrics(folder), workers.state()
        gc.collect()
        gc.freeze()  # a pass of the collector over this program's own objects is no part of a page
        costs["prometheus-client"].append(cost_of(lambda: library_page(folder, state, "")))
        costs["router, first"].append(cost_of(lambda: b"".join(fresh.page(state, "")[0])))
        costs["router"].append(cost_of(lambda: b"".join(kept.page(state, "")[0])))
    return costs


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("models", 150), ("endpoints", 300), ("workers", 2), ("rounds", 15)):
        options.add_argument(f"--{name}", type=at_least(1), default=default)
    given = options.parse_args()
    with TemporaryDirectory() as name:
        workers = Workers(Path(name), given.models, given.endpoints, given.workers)
        workers.count(0.1)
        costs = measure(Path(name), workers, given.rounds)
    print(
        f"{given.models} models, {given.endpoints} endpoints, {given.workers} workers: {costs['router'][0].size} bytes"
    )
    print("| page by | CPU, ms | x | longest turn, ms (worst) | x |\n|---|---:|---:|---:|---:|")
    base_cpu, base_turn = (median(each[at] for each in costs["prometheus-client"]) for at in (0, 1))
    for way, each in costs.items():
        cpu, turn = median(cost.cpu_ms for cost in each), median(cost.turn_ms for cost in each)
        worst = max(cost.turn_ms for cost in each)
        print(f"| {way} | {cpu:.1f} | {cpu / base_cpu:.2f} | {turn:.1f} ({worst:.1f}) | {turn / base_turn:.2f} |")


if __name__ == "__main__":
    main()
