"""Every metric of the router: names, labels and buckets, and how they outlive workers.

Two kinds:
- Counters and histograms use prometheus-client's multi-process mode with files per worker **slot**, not per process id:
  restarts add no files, and a worker's successor goes on counting where the worker stopped, also after a SIGKILL.
- Gauges are read from the shared table at the moment of the scrape, so every worker returns the same.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.observability.metric_cells import Count, Distribution
from app.observability.metric_files import MetricFiles

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
REJECTIONS = ("limit_reached", "model_limit_reached", "queue_full", "queue_timeout")
RETRIES = ("stale_connection", "unreachable", "status_429", "status_502", "status_503")
RELOADS = ("ok", "refused")


class Family(NamedTuple):
    """A metric as the page and the README show it."""

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    about: str
    labels: tuple[str, ...] = ()


INFLIGHT = Family("gauge", "router_inflight_requests", "Permits taken: requests inside the model, over all workers.")
QUEUED = Family("gauge", "router_queued_requests", "Requests waiting for a permit, over all workers.")
MAX_CONCURRENCY = Family("gauge", "router_max_concurrency", "The cap: how many permits there are, over all workers.")
WORKERS = Family("gauge", "router_workers", "Worker processes alive.")
ENDPOINT_INFLIGHT = Family(
    "gauge", "router_endpoint_inflight", "Requests in progress with an endpoint, over all workers.", ("endpoint",)
)
ENDPOINT_UP = Family(
    "gauge", "router_endpoint_up", "Whether an endpoint is known to be healthy, and not ejected.", ("endpoint",)
)
FILES_IN_MEMORY = Family(
    "gauge",
    "router_metric_files_in_memory",
    "Metrics files, over all workers, that found no room on their filesystem: what they count is missing on this page.",
)
PERMITS_RECLAIMED = Family("counter", "router_permits_reclaimed_total", "Permits taken back from workers that died.")
REQUESTS = Family(
    "counter",
    "router_requests_total",
    "Inference requests, by the status code of the response; 499 means that the client left first.",
    ("route", "model", "code"),
)
REJECTED = Family(
    "counter",
    "router_rejected_requests_total",
    "Inference requests rejected because of overload; none of them reached a model.",
    ("reason",),
)
REQUEST_SECONDS = Family(
    "histogram",
    "router_request_duration_seconds",
    "From the request's arrival in the router to the last byte of the response.",
    ("route", "model"),
)
QUEUE_SECONDS = Family("histogram", "router_queue_wait_seconds", "Time that admitted requests waited for a permit.")
MODEL_SECONDS = Family(
    "histogram", "router_model_duration_seconds", "Time that requests spent inside the model.", ("model",)
)
OVERHEAD = Family(
    "histogram",
    "router_overhead_seconds",
    "The router's own share: request duration less queue wait less model duration.",
)
ENDPOINT_REQUESTS = Family(
    "counter",
    "router_endpoint_requests_total",
    "Requests sent to an endpoint, by the status of its response, or by what went wrong.",
    ("endpoint", "code"),
)
RETRIED = Family("counter", "router_retries_total", "Requests sent to an endpoint again, by the reason.", ("reason",))
FIRST_BYTE_SECONDS = Family(
    "histogram",
    "router_time_to_first_byte_seconds",
    "From the choice of an endpoint to the first byte of the body of its response, or to its end if it has no body.",
    ("model",),
)
UPSTREAM_SECONDS = Family(
    "histogram",
    "router_upstream_duration_seconds",
    "From the choice of an endpoint to the last byte of its response, or to its failure.",
    ("model",),
)
RELOADED = Family(
    "counter",
    "router_routes_reloads_total",
    "Changed routes files, by what became of them: published (ok), or refused as invalid.",
    ("result",),
)


class EndpointState(NamedTuple):
    """What the gauges say of an endpoint."""

    url: str
    inflight: int
    up: bool


class SharedState(NamedTuple):
    """What the shared table says at the moment of a scrape."""

    inflight: int
    queued: int
    max_concurrency: int
    workers: int
    metric_files_in_memory: int
    permits_reclaimed: int
    endpoints: Sequence[EndpointState]


def keep_files_per_slot(directory: Path, slot: Callable[[], object], files: MetricFiles | None = None) -> None:
    """Switch prometheus-client to multi-process mode. Call before the first metric is made."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.MmapedDict = MmapedDict if files is None else files.open  # type: ignore[attr-defined, assignment]
    values.ValueClass = values.MultiProcessValue(slot)


class Metrics:
    """The metrics that requests write, and the page that shows all metrics."""

    def __init__(self, directory: Path) -> None:
        """`directory` holds the files of all workers."""
        self._directory = directory
        self.requests = _counts(REQUESTS)
        self.request_seconds = _distributions(REQUEST_SECONDS)
        self.model_seconds = _distributions(MODEL_SECONDS)
        self.endpoint_requests = _counts(ENDPOINT_REQUESTS)
        self.first_byte_seconds = _distributions(FIRST_BYTE_SECONDS)
        self.upstream_seconds = _distributions(UPSTREAM_SECONDS)
        self.queue_seconds = Distribution(_histogram(QUEUE_SECONDS))
        self.overhead_seconds = Distribution(_histogram(OVERHEAD, OVERHEAD_SECONDS))
        self.retries = _counts_of(RETRIED, RETRIES)
        self.rejections = _counts_of(REJECTED, REJECTIONS)
        self.reloads = _counts_of(RELOADED, RELOADS)

    def page(self, state: SharedState, accept: str) -> tuple[bytes, str]:
        """Returns the metrics of all workers and their content type: OpenMetrics if `accept` prefers it, else text."""
        registry = CollectorRegistry()
        registry.register(_Files(self._directory))
        registry.register(_Gauges(state))
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # `accept` names an invalid version: the plain format is always acceptable
            encode, content_type = choose_encoder("")
        return encode(registry), content_type


class _Files(Collector):
    """The counters and histograms in the files of all workers.

    prometheus-client makes a file empty and gives it its size by a second call. Its own collector fails on a scrape
    that comes between the two, so an empty file is left out: nothing was counted in it yet.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = [str(file) for file in self._directory.glob("*.db") if file.stat().st_size]
        metrics: Iterable[Metric] = MultiProcessCollector.merge(files, accumulate=True)
        return metrics


class _Gauges(Collector):
    """The state of the shared table as metric families."""

    def __init__(self, state: SharedState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        for family, value in (
            (INFLIGHT, state.inflight),
            (QUEUED, state.queued),
            (MAX_CONCURRENCY, state.max_concurrency),
            (WORKERS, state.workers),
            (FILES_IN_MEMORY, state.metric_files_in_memory),
        ):
            yield GaugeMetricFamily(family.name, family.about, value)
        name = PERMITS_RECLAIMED.name.removesuffix("_total")
        yield CounterMetricFamily(name, PERMITS_RECLAIMED.about, state.permits_reclaimed)
        inflight, up = _by_endpoint(ENDPOINT_INFLIGHT), _by_endpoint(ENDPOINT_UP)
        for endpoint in state.endpoints:
            inflight.add_metric((endpoint.url,), endpoint.inflight)
            up.add_metric((endpoint.url,), endpoint.up)
        yield inflight
        yield up


def _by_endpoint(family: Family) -> GaugeMetricFamily:
    return GaugeMetricFamily(family.name, family.about, labels=family.labels)


def _counter(family: Family) -> Counter:
    # The registry holds nothing: the page reads the files of all workers instead.
    return Counter(family.name, family.about, family.labels, registry=CollectorRegistry())


def _histogram(family: Family, buckets: tuple[float, ...] = SECONDS) -> Histogram:
    return Histogram(family.name, family.about, family.labels, buckets=buckets, registry=CollectorRegistry())


def _counts(family: Family) -> Callable[..., Count]:
    """Returns a function from the labels' values to their counter."""
    counter = _counter(family)
    # prometheus-client looks a child up at every `labels` call; there are few, so they are kept.
    return lru_cache(maxsize=4096)(lambda *labels: Count(counter.labels(*labels)))


def _distributions(family: Family) -> Callable[..., Distribution]:
    """Returns a function from the labels' values to their histogram."""
    histogram = _histogram(family)
    return lru_cache(maxsize=4096)(lambda *labels: Distribution(histogram.labels(*labels)))


def _counts_of(family: Family, label_values: Sequence[str]) -> dict[str, Count]:
    """Returns the counters of a label whose values are all known, so that each is on the page from the start."""
    counter = _counter(family)
    return {value: Count(counter.labels(value)) for value in label_values}
