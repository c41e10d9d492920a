"""Every metric of the router: names, labels and buckets, and how they outlive workers.

Two kinds:
- Counters and histograms use prometheus-client's multi-process mode with files per worker **slot**, not per process id:
  restarts add no files, and a worker's successor goes on counting where the worker stopped, also after a SIGKILL.
- Gauges are read from the shared table at the moment of the scrape, so every worker returns the same.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from gevent.lock import BoundedSemaphore
from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict

from app.compiled import form
from app.net.certificate_validity import Validity
from app.observability.auth_metrics import KEYS_STALE, TENANT_INFLIGHT, AuthMetrics
from app.observability.endpoint_gauges import (
    ENDPOINT_DRAINING,
    ENDPOINT_INFLIGHT,
    ENDPOINT_LOAD_STALE,
    ENDPOINT_UP,
    EndpointState,
)
from app.observability.metric_cells import Distribution
from app.observability.metric_families import Family, counts, counts_of, distributions, histogram, metric_of
from app.observability.metric_files import MetricFiles
from app.observability.metric_series import Sample
from app.observability.metric_text import Format, Lines, accepted_format
from app.observability.metric_totals import MetricFilesReader
from app.observability.model_gauges import ModelGauges, ModelState
from app.observability.route_metrics import DISCOVERED, DISCOVERY_RESULTS, RELOADED, RELOADS, ROUTES_STALE
from app.observability.tls_metrics import CERTIFICATE_NOT_AFTER, CERTIFICATE_NOT_BEFORE, TLS_FILES_STALE, TlsMetrics
from app.observability.token_metrics import TokenMetrics
from app.observability.turns import Turns

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
REJECTIONS = ("limit_reached", "model_limit_reached", "queue_full", "queue_timeout", "tenant_limit_reached")
RETRIES = ("stale_connection", "unreachable", "status_429", "status_502", "status_503")
SPAN_RESULTS = ("exported", "failed", "dropped")

_PIECE_BYTES = 1 << 16
"""The page is sent in such pieces: to join and to copy megabytes would be a long turn of the event loop."""

INFLIGHT = Family("gauge", "router_inflight_requests", "Permits taken: requests inside the model, over all workers.")
QUEUED = Family("gauge", "router_queued_requests", "Requests waiting for a permit, over all workers.")
MAX_CONCURRENCY = Family("gauge", "router_max_concurrency", "The cap: how many permits there are, over all workers.")
WORKERS = Family("gauge", "router_workers", "Worker processes alive.")
BUILD_INFO = Family(
    "gauge",
    "router_build_info",
    "Always 1; the labels say which release runs, and whether it is `compiled` or `pure`.",
    ("version", "form"),
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
FALLBACKS = Family(
    "counter",
    "router_fallbacks_total",
    "Requests that went from a model to one of its fallbacks, by the reason.",
    ("model", "to", "reason"),
)
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
SPANS = Family(
    "counter",
    "router_trace_spans_total",
    "Spans of traced requests: exported, failed to be exported, or dropped because too many were waiting for that.",
    ("result",),
)
_ABOUT_WAIT = "Requests that wait because their model has no endpoint at all, over all workers."
WAITING_FOR_ENDPOINT = Family("gauge", "router_endpoint_wait_requests", _ABOUT_WAIT, ("model",))


class SharedState(NamedTuple):
    """What the shared table says at the moment of a scrape."""

    inflight: int
    queued: int
    max_concurrency: int
    workers: int
    metric_files_in_memory: int
    permits_reclaimed: int
    endpoints: Sequence[EndpointState]
    models: Sequence[ModelState] = ()
    discovered: Mapping[str, int] = {}
    """By the key of its source."""
    waiting: Mapping[str, int] = {}
    """Requests without an endpoint, by model."""
    tenants: Mapping[str, int] = {}
    certificates: Mapping[str, Validity] = {}
    """By their files."""
    stale_keys: Mapping[str, bool] = {}
    stale_tls_files: Mapping[str, bool] = {}
    routes_are_stale: bool = False


def keep_files_per_slot(directory: Path, slot: Callable[[], object], files: MetricFiles | None = None) -> None:
    """Switch prometheus-client to multi-process mode. Call before the first metric is made."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.MmapedDict = MmapedDict if files is None else files.open  # type: ignore[attr-defined, assignment]
    values.ValueClass = values.MultiProcessValue(slot)


class Metrics:
    """The metrics that requests write, and the page that shows all metrics."""

    def __init__(self, directory: Path) -> None:
        """`directory` holds the files of all workers."""
        self._files = MetricFilesReader(directory)
        self._gauges = _Gauges()
        self._one_page = BoundedSemaphore()
        self.requests = counts(REQUESTS)
        self.request_seconds = distributions(REQUEST_SECONDS, SECONDS)
        self.model_seconds = distributions(MODEL_SECONDS, SECONDS)
        self.endpoint_requests = counts(ENDPOINT_REQUESTS)
        self.first_byte_seconds = distributions(FIRST_BYTE_SECONDS, SECONDS)
        self.upstream_seconds = distributions(UPSTREAM_SECONDS, SECONDS)
        self.queue_seconds = Distribution(histogram(QUEUE_SECONDS, SECONDS))
        self.overhead_seconds = Distribution(histogram(OVERHEAD, OVERHEAD_SECONDS))
        self._discovery_results = counts(DISCOVERY_RESULTS)
        self.retries = counts_of(RETRIED, RETRIES)
        self.rejections = counts_of(REJECTED, REJECTIONS)
        self.fallbacks = counts(FALLBACKS)
        self.spans = counts_of(SPANS, SPAN_RESULTS)
        self.reloads = counts_of(RELOADED, RELOADS)
        self.token_metrics = TokenMetrics()
        self.tls = TlsMetrics()
        self.auth = AuthMetrics()

    def count_discovery(self, source: str, result: str) -> None:
        """Count one result of discovery, `ok` or `failed`."""
        self._discovery_results(source, result).inc()

    def page(self, state: SharedState, accept: str) -> tuple[list[bytes], str]:
        """Returns the metrics of all workers, in pieces, and their content type.

        That is OpenMetrics if `accept` prefers it, else text. Other greenlets run while a large page is made.
        """
        self.token_metrics.count_pending()
        form, turns = accepted_format(accept), Turns()
        pieces: list[bytes] = []
        unjoined: list[bytes] = []
        size = 0
        with self._one_page:  # what is kept for the next page must not change under this one
            for text in self._texts(state, form, turns):
                unjoined.append(text)
                size += len(text)
                if size >= _PIECE_BYTES:
                    pieces.append(b"".join(unjoined))
                    unjoined.clear()
                    size = 0
                turns.pause_if_due()
        return [*pieces, b"".join(unjoined)], form.content_type

    def totals(self, *families: Family) -> Iterator[tuple[Family, Mapping[str, str], dict[Sample, float]]]:
        """Yields the numbers of these metrics over all workers, series by series: metric, labels, numbers.

        Numbers are by sample. One of them may come in parts, which have to be added.
        """
        with self._one_page:
            totals = self._files.read(Turns())
        for family in families:
            for series, first in totals.families.get(family.name.removesuffix("_total"), {}).items():
                for samples, numbers in totals.take(series, first):
                    yield family, series.labels, dict(zip(samples, numbers, strict=True))

    def _texts(self, state: SharedState, form: Format, turns: Turns) -> Iterator[bytes]:
        totals = self._files.read(turns)
        for members in totals.families.values():
            yield form.head(next(iter(members)).family)
            for series, run in members.items():
                yield series.text(form, totals.take(series, run))
        for family, lines in self._gauges.of(state):
            yield form.head(family)
            for each, value in lines:
                yield each.text(form, (value,))
        yield form.end()


_SHOWN_ALWAYS = (ENDPOINT_INFLIGHT, ENDPOINT_UP, ENDPOINT_DRAINING)
"""The other families by labels are shown where routes or keys have what they are about."""


class _Gauges:
    """The state of the shared table as metrics."""

    def __init__(self) -> None:
        self._lines: dict[Family, dict[str, Lines]] = {}
        """By the value of their label."""
        self._models = ModelGauges()
        self._build = {"version": metadata.version("inference-router"), "form": form()}

    def of(self, state: SharedState) -> Iterator[tuple[Metric, Iterable[tuple[Lines, float]]]]:
        """Yields each metric with its lines and their numbers."""
        for family, value in (
            (INFLIGHT, state.inflight),
            (QUEUED, state.queued),
            (MAX_CONCURRENCY, state.max_concurrency),
            (WORKERS, state.workers),
            (FILES_IN_MEMORY, state.metric_files_in_memory),
            (PERMITS_RECLAIMED, state.permits_reclaimed),
            (ROUTES_STALE, state.routes_are_stale),
        ):
            metric = metric_of(family)
            yield metric, [(Lines(metric, {}, [family.name]), value)]
        metric = metric_of(BUILD_INFO)
        yield metric, [(Lines(metric, self._build, [BUILD_INFO.name]), 1)]
        for family, by_label in (
            (ENDPOINT_INFLIGHT, ((each.url, each.inflight) for each in state.endpoints)),
            (ENDPOINT_UP, ((each.url, each.up) for each in state.endpoints)),
            (ENDPOINT_DRAINING, ((each.url, each.draining) for each in state.endpoints)),
            (DISCOVERED, list(state.discovered.items())),
            (WAITING_FOR_ENDPOINT, list(state.waiting.items())),
            (TENANT_INFLIGHT, list(state.tenants.items())),
            (KEYS_STALE, list(state.stale_keys.items())),
            (TLS_FILES_STALE, list(state.stale_tls_files.items())),
            (CERTIFICATE_NOT_BEFORE, [(file, valid.not_before) for file, valid in state.certificates.items()]),
            (CERTIFICATE_NOT_AFTER, [(file, valid.not_after) for file, valid in state.certificates.items()]),
            (ENDPOINT_LOAD_STALE, [(e.url, e.load_is_stale) for e in state.endpoints if e.load_is_stale is not None]),
        ):
            metric = metric_of(family)
            if by_label or family in _SHOWN_ALWAYS:
                yield metric, self._by_label(metric, family, by_label)
        if state.models:
            yield from self._models.of(state.models)

    def _by_label(
        self, metric: Metric, family: Family, values: Iterable[tuple[str, float]]
    ) -> Iterator[tuple[Lines, float]]:
        kept = self._lines.get(family, {})
        current = self._lines[family] = {}  # others are forgotten
        for text, value in values:
            lines = current[text] = kept.get(text) or Lines(metric, {family.labels[0]: text}, [family.name])
            yield lines, value
