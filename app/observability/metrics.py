"""Every metric of the router: names, labels and buckets, and how they outlive workers.

Two kinds:
- Counters and histograms use prometheus-client's multi-process mode with files per worker **slot**, not per process id:
  restarts add no files, and a worker's successor goes on counting where the worker stopped, also after a SIGKILL.
- Gauges are read from the shared table at the moment of the scrape, so every worker returns the same.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.observability.metric_cells import Count, Distribution

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
REJECTIONS = ("limit_reached", "model_limit_reached", "queue_full", "queue_timeout")
RETRIES = ("stale_connection", "unreachable", "status_429", "status_502", "status_503")
RELOADS = ("ok", "refused")


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
    permits_reclaimed: int
    endpoints: Sequence[EndpointState]


def keep_files_per_slot(directory: Path, slot: Callable[[], object]) -> None:
    """Switch prometheus-client to multi-process mode. Call before the first metric is made."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.ValueClass = values.MultiProcessValue(slot)


class Metrics:
    """The metrics that requests write, and the page that shows them all."""

    def __init__(self, directory: Path) -> None:
        """`directory` holds the files of all workers."""
        self._directory = str(directory)
        own = CollectorRegistry()  # holds nothing: the page reads the files of all workers instead
        self.requests = Counter(
            "router_requests_total",
            "Inference requests, by the status code of the response; 499 means that the client left first.",
            ("route", "model", "code"),
            registry=own,
        )
        self.rejections = Counter(
            "router_rejected_requests_total",
            "Inference requests rejected because of overload; none of them reached a model.",
            ("reason",),
            registry=own,
        )
        self.request_seconds = Histogram(
            "router_request_duration_seconds",
            "From the request's arrival in the router to the last byte of the response.",
            ("route", "model"),
            buckets=SECONDS,
            registry=own,
        )
        self.queue_seconds = Histogram(
            "router_queue_wait_seconds",
            "Time that admitted requests waited for a permit.",
            buckets=SECONDS,
            registry=own,
        )
        self.model_seconds = Histogram(
            "router_model_duration_seconds",
            "Time that requests spent inside the model.",
            ("model",),
            buckets=SECONDS,
            registry=own,
        )
        self.overhead_seconds = Histogram(
            "router_overhead_seconds",
            "The router's own share: request duration less queue wait less model duration.",
            buckets=OVERHEAD_SECONDS,
            registry=own,
        )
        self.endpoint_requests = Counter(
            "router_endpoint_requests_total",
            "Requests sent to an endpoint, by the status of its response, or by what went wrong.",
            ("endpoint", "code"),
            registry=own,
        )
        self.retries = Counter(
            "router_retries_total", "Requests sent to an endpoint again, by the reason.", ("reason",), registry=own
        )
        self.first_byte_seconds = Histogram(
            "router_time_to_first_byte_seconds",
            "From the choice of an endpoint to the head of its response.",
            ("model",),
            buckets=SECONDS,
            registry=own,
        )
        self.upstream_seconds = Histogram(
            "router_upstream_duration_seconds",
            "From the choice of an endpoint to the last byte of its response, or to its failure.",
            ("model",),
            buckets=SECONDS,
            registry=own,
        )
        self.reloads = Counter(
            "router_routes_reloads_total",
            "Changed routes files, by what became of them: published (ok), or refused as invalid.",
            ("result",),
            registry=own,
        )
        # prometheus-client looks a child up on every `labels` call; there are few, so keep them.
        self.requests_child = lru_cache(maxsize=4096)(_counts(self.requests))
        self.request_seconds_child = lru_cache(maxsize=4096)(_distributions(self.request_seconds))
        self.model_seconds_child = lru_cache(maxsize=4096)(_distributions(self.model_seconds))
        self.endpoint_requests_child = lru_cache(maxsize=4096)(_counts(self.endpoint_requests))
        self.first_byte_child = lru_cache(maxsize=4096)(_distributions(self.first_byte_seconds))
        self.upstream_seconds_child = lru_cache(maxsize=4096)(_distributions(self.upstream_seconds))
        self.queue_seconds_child = Distribution(self.queue_seconds)
        self.overhead_seconds_child = Distribution(self.overhead_seconds)
        self.retries_child = {reason: Count(self.retries.labels(reason)) for reason in RETRIES}
        self.rejections_child = {reason: Count(self.rejections.labels(reason)) for reason in REJECTIONS}
        self.reloads_child = {result: Count(self.reloads.labels(result)) for result in RELOADS}

    def page(self, state: SharedState, accept: str) -> tuple[bytes, str]:
        """Returns the metrics of all workers and their content type: OpenMetrics if `accept` prefers it, else text."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self._directory)
        registry.register(_Gauges(state))
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # `accept` names an invalid version: the plain format is always acceptable
            encode, content_type = choose_encoder("")
        return encode(registry), content_type


class _Gauges(Collector):
    """The state of the shared table as metric families."""

    def __init__(self, state: SharedState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        for name, about, value in (
            ("router_inflight_requests", "Permits taken: requests inside the model, over all workers.", state.inflight),
            ("router_queued_requests", "Requests waiting for a permit, over all workers.", state.queued),
            ("router_max_concurrency", "The cap, MAX_CONCURRENCY.", state.max_concurrency),
            ("router_workers", "Worker processes alive.", state.workers),
        ):
            yield GaugeMetricFamily(name, about, value)
        reclaimed = "Permits taken back from workers that died."
        yield CounterMetricFamily("router_permits_reclaimed", reclaimed, state.permits_reclaimed)
        inflight = GaugeMetricFamily(
            "router_endpoint_inflight", "Requests in progress with an endpoint, over all workers.", labels=("endpoint",)
        )
        up = GaugeMetricFamily(
            "router_endpoint_up", "Whether an endpoint is healthy and not ejected.", labels=("endpoint",)
        )
        for endpoint in state.endpoints:
            inflight.add_metric((endpoint.url,), endpoint.inflight)
            up.add_metric((endpoint.url,), endpoint.up)
        yield inflight
        yield up


def _counts(counter: Counter) -> Callable[..., Count]:
    return lambda *labels: Count(counter.labels(*labels))


def _distributions(histogram: Histogram) -> Callable[..., Distribution]:
    return lambda *labels: Distribution(histogram.labels(*labels))
