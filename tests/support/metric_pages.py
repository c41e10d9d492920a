"""The page of `/metrics` as prometheus-client makes it of the same files and the same state."""

from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.compiled import form
from app.observability import endpoint_gauges, model_gauges
from app.observability import metrics as names
from app.observability.metrics import SharedState
from app.observability.model_gauges import ModelState
from app.observability.route_metrics import DISCOVERED, ROUTES_STALE


def library_page(folder: Path, state: SharedState, accept: str) -> bytes:
    """Returns the page in the format that the library chooses."""
    registry = CollectorRegistry()
    registry.register(_Files(folder))
    registry.register(_Gauges(state))
    encode, _ = choose_encoder(accept)
    return encode(registry)


_ALWAYS = (endpoint_gauges.ENDPOINT_INFLIGHT, endpoint_gauges.ENDPOINT_UP, endpoint_gauges.ENDPOINT_DRAINING)


class _Files(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        files = sorted(str(file) for file in self._folder.glob("*.db") if file.stat().st_size)
        metrics: Iterable[Metric] = MultiProcessCollector.merge(files, accumulate=True)
        return metrics


class _Gauges(Collector):
    def __init__(self, state: SharedState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        for family, value in (
            (names.INFLIGHT, state.inflight),
            (names.QUEUED, state.queued),
            (names.MAX_CONCURRENCY, state.max_concurrency),
            (names.WORKERS, state.workers),
            (names.FILES_IN_MEMORY, state.metric_files_in_memory),
        ):
            yield GaugeMetricFamily(family.name, family.about, value)
        reclaimed = names.PERMITS_RECLAIMED
        yield CounterMetricFamily(reclaimed.name.removesuffix("_total"), reclaimed.about, state.permits_reclaimed)
        yield GaugeMetricFamily(ROUTES_STALE.name, ROUTES_STALE.about, state.routes_are_stale)
        build = GaugeMetricFamily(names.BUILD_INFO.name, names.BUILD_INFO.about, labels=names.BUILD_INFO.labels)
        build.add_metric((metadata.version("inference-router"), form()), 1)
        yield build
        for family, values in (
            (endpoint_gauges.ENDPOINT_INFLIGHT, [(each.url, each.inflight) for each in state.endpoints]),
            (endpoint_gauges.ENDPOINT_UP, [(each.url, each.up) for each in state.endpoints]),
            (endpoint_gauges.ENDPOINT_DRAINING, [(each.url, each.draining) for each in state.endpoints]),
            (DISCOVERED, state.discovered.items()),
            (names.WAITING_FOR_ENDPOINT, state.waiting.items()),
            (
                endpoint_gauges.ENDPOINT_LOAD_STALE,
                [(e.url, e.load_is_stale) for e in state.endpoints if e.load_is_stale is not None],
            ),
        ):
            if not values and family not in (
                endpoint_gauges.ENDPOINT_INFLIGHT,
                endpoint_gauges.ENDPOINT_UP,
                endpoint_gauges.ENDPOINT_DRAINING,
            ):
                continue
            by_endpoint = GaugeMetricFamily(family.name, family.about, labels=family.labels)
            for url, number in values:
                by_endpoint.add_metric((url,), number)
            yield by_endpoint
        if state.models:
            yield from _of_models(state.models)


def _of_models(states: Iterable[ModelState]) -> Iterator[Metric]:
    for family, name in (
        (model_gauges.MODEL_INFLIGHT, "inflight"),
        (model_gauges.MODEL_QUEUED, "queued"),
        (model_gauges.MODEL_CAPACITY, "capacity"),
        (model_gauges.MODEL_USABLE, "usable"),
        (model_gauges.DEMAND, "demand"),
    ):
        by_model = GaugeMetricFamily(family.name, family.about, labels=family.labels)
        for state in states:
            by_model.add_metric((state.name,), getattr(state, name))
        yield by_model
    family = model_gauges.MODEL_REJECTED
    rejected = CounterMetricFamily(family.name.removesuffix("_total"), family.about, labels=family.labels)
    for state in states:
        rejected.add_metric((state.name,), state.rejected)
    yield rejected
