"""Build the router: settings become shared memory, metrics, models and the application, all in one record.

`build_router` runs in the arbiter, before any worker is forked: every worker inherits what is made here. Importing this
module does no work.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from wsgiref.types import WSGIApplication

from app.admission import limiter as limiter_module
from app.admission import model_limit, model_traffic, tenant_limit
from app.admission.demand import DemandMeter
from app.admission.limiter import Limiter
from app.admission.model_traffic import TrafficCounts
from app.api.application import create_app
from app.api.dispatch import Dispatcher
from app.auth import layouts as auth_layouts
from app.auth.building import Auth, build_auth
from app.config.routes_source import RoutesSource
from app.config.settings import Settings
from app.discovery import dns_source
from app.discovery.api_server import api_server_in
from app.discovery.discovery import Discovery
from app.observability import metric_files as metric_files_module
from app.observability import tracing
from app.observability.metric_files import MetricFiles
from app.observability.metrics import Metrics, SharedState, keep_files_per_slot
from app.observability.metrics_directory import MetricsDirectory, open_directory
from app.routing import (
    back_off,
    created_responses,
    endpoint_pool,
    endpoint_records,
    load_reports,
    prefix_history,
    retry_budget,
    route_store,
)
from app.routing.endpoint import SharedRouting
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_wait import EndpointWait
from app.routing.health_checks import HealthChecks
from app.routing.load_reports import LoadReports
from app.routing.load_scrapes import LoadScrapes
from app.routing.outlier_detection import OutlierDetector
from app.routing.publisher import Publisher
from app.routing.registry import ModelRegistry
from app.shared_memory import connection_counts as connection_counts_module
from app.shared_memory import counters as counters_module
from app.shared_memory import drain as drain_module
from app.shared_memory import leader as leader_module
from app.shared_memory import slots as slots_module
from app.shared_memory.connection_counts import ConnectionCounts
from app.shared_memory.counters import InflightCounters
from app.shared_memory.drain import Drain
from app.shared_memory.leader import Leader
from app.shared_memory.slots import Slots
from app.shared_memory.table import SharedTable

if TYPE_CHECKING:
    from app.observability.otel import Tracing


class Models(NamedTuple):
    """The models, and what keeps them up to date."""

    registry: ModelRegistry
    publisher: Publisher
    health_checks: HealthChecks
    discovery: Discovery
    load_scrapes: LoadScrapes


@dataclass(frozen=True, kw_only=True)
class Router:
    """Everything that one server consists of."""

    settings: Settings
    script_name: str
    """The environment variable SCRIPT_NAME, which gunicorn honours."""
    table: SharedTable
    slots: Slots
    limiter: Limiter
    drain: Drain
    leader: Leader
    counters: InflightCounters
    traffic: TrafficCounts
    demand: DemandMeter
    connection_counts: ConnectionCounts
    metrics: Metrics
    metric_files: MetricFiles
    metrics_directory: MetricsDirectory
    models: Models
    auth: Auth
    tracing: "Tracing | None"
    application: WSGIApplication

    def handover(self) -> str:
        """Let the next program that this process executes inherit the shared state. Returns `inherited` for it."""
        return f"{self.table.handover()};{self.metrics_directory.path}"


def build_router(settings: Settings, environ: Mapping[str, str], inherited: str | None = None) -> Router:
    """Build the router of these settings.

    `environ` has the credentials of endpoints. `inherited` is what `Router.handover` returned in the program before
    this one, after a binary upgrade. Raises a RouterError, with a message of one line.
    """
    table_fds, _, directory = (inherited or "").partition(";")
    table = shared_table(settings.max_concurrency, settings.queue_size, table_fds or None)
    metrics_directory = open_directory(settings.prometheus_multiproc_dir, directory or None)
    try:
        return _build_parts(settings, environ, table, metrics_directory)
    except BaseException:
        metrics_directory.leave()
        raise


def _build_parts(
    settings: Settings, environ: Mapping[str, str], table: SharedTable, metrics_directory: MetricsDirectory
) -> Router:
    limiter = _limiter(settings, table)
    counters = InflightCounters(table)
    traffic = TrafficCounts(table, counters)
    metric_files = MetricFiles(table)
    connection_counts = ConnectionCounts(table)
    tenant_counters = InflightCounters(table, tenant_limit.COUNTERS)
    slots = Slots(table, (counters, traffic, limiter, metric_files, connection_counts, tenant_counters))
    drain = Drain(table)
    keep_files_per_slot(metrics_directory.path, lambda: "arbiter" if slots.own is None else slots.own, metric_files)
    metrics = Metrics(metrics_directory.path)
    models = _build_models(settings, environ, table, traffic, metrics)
    auth = build_auth(settings, table, tenant_counters, metrics.auth)
    traced = tracing.load(environ, metrics)
    wait = EndpointWait(models.registry, table, counters, drain, settings.queue_size)
    dispatcher = _dispatcher(settings, models.registry, limiter, drain, wait, metrics, traced)
    read_state = partial(shared_state, limiter, slots, metric_files, models.registry, auth.inflight)
    return Router(
        settings=settings,
        script_name=environ.get("SCRIPT_NAME", ""),
        table=table,
        slots=slots,
        limiter=limiter,
        drain=drain,
        leader=Leader(table),
        counters=counters,
        traffic=traffic,
        demand=DemandMeter(traffic),
        connection_counts=connection_counts,
        metrics=metrics,
        metric_files=metric_files,
        metrics_directory=metrics_directory,
        models=models,
        auth=auth,
        tracing=traced,
        application=create_app(settings, dispatcher, metrics, read_state, auth.authenticator),
    )


def _limiter(settings: Settings, table: SharedTable) -> Limiter:
    limiter = Limiter(table, settings.queue_size)
    if not table.adopted:
        limiter.set_limit(settings.max_concurrency)
    return limiter


def _dispatcher(  # noqa: PLR0913, PLR0917  # the parts of a request's path
    settings: Settings,
    registry: ModelRegistry,
    limiter: Limiter,
    drain: Drain,
    wait: EndpointWait,
    metrics: Metrics,
    traced: "Tracing | None",
) -> Dispatcher:
    return Dispatcher(
        registry,
        limiter,
        drain,
        settings.max_body_bytes,
        queue_timeout_s=settings.queue_timeout_ms / 1000,
        trace_sample_ratio=settings.trace_sample_ratio if traced is None else 0.0,  # the SDK's sampler decides
        max_upload_bytes=settings.max_upload_bytes,
        wait=wait,
        text=metrics.text,
        tracing=traced,
    )


def _build_models(
    settings: Settings, environ: Mapping[str, str], table: SharedTable, traffic: TrafficCounts, metrics: Metrics
) -> Models:
    """Publish the routes, and build the registry that makes models of them. Raises RoutesError."""
    counters = traffic.inflight
    records, back_offs = endpoint_records.EndpointRecords(table), back_off.BackOffs(table)
    outliers, health, budgets = OutlierDetector(records), EndpointHealth(records), retry_budget.RetryBudgets(table)
    limits, loads = model_limit.ModelLimits(table, counters), LoadReports(table, counters)
    parts = (records, back_offs, budgets, limits, traffic, loads)
    store = route_store.RouteStore(table, counters, parts, records.appear)
    publisher = Publisher(RoutesSource(settings, environ), store, metrics)
    publisher.publish()
    prefixes = prefix_history.PrefixHistory(table)
    registry = ModelRegistry(
        store,
        SharedRouting(table, counters, outliers, health, back_offs, budgets, limits, traffic, metrics, loads, prefixes),
        created_responses.CreatedResponses(table),
        simulated_latency_s=settings.simulated_latency_ms / 1000,
        simulated_token_s=settings.simulated_token_ms / 1000,
        assume_healthy=settings.initial_health == "healthy",
    )
    discovery = Discovery(publisher.publish_found, api_server_in(environ), metrics.count_discovery)
    if any(source.kind == "dns" for source in registry.sources().values()):
        dns_source.prepare()
    return Models(registry, publisher, HealthChecks(registry, health), discovery, LoadScrapes(registry, loads))


def shared_table(max_concurrency: int, queue_size: int, inherited: str | None = None) -> SharedTable:
    """Make the table for these limits, or adopt the one of the program before this one (see SharedTable)."""
    return SharedTable(
        (
            slots_module.LAYOUT,
            drain_module.LAYOUT,
            leader_module.LAYOUT,
            counters_module.LAYOUT,
            connection_counts_module.LAYOUT,
            limiter_module.layout(queue_size),
            metric_files_module.LAYOUT,
            model_limit.LAYOUT,
            model_traffic.LAYOUT,
            tenant_limit.LAYOUT,
            *auth_layouts.LAYOUTS,
            endpoint_records.LAYOUT,
            back_off.LAYOUT,
            load_reports.LAYOUT,
            prefix_history.LAYOUT,
            retry_budget.LAYOUT,
            endpoint_pool.LAYOUT,
            route_store.LAYOUT,
            created_responses.LAYOUT,
        ),
        identity=f"MAX_CONCURRENCY={max_concurrency} QUEUE_SIZE={queue_size}",
        inherited=inherited,
    )


def shared_state(
    limiter: Limiter,
    slots: Slots,
    metric_files: MetricFiles,
    registry: ModelRegistry,
    tenants: Callable[[], Mapping[str, int]] = dict,
) -> SharedState:
    """What the gauges say now. `tenants` returns how many requests each tenant has."""
    inflight, queued = limiter.snapshot()
    return SharedState(
        inflight=inflight,
        queued=queued,
        max_concurrency=limiter.limit,
        workers=slots.live_workers(),
        metric_files_in_memory=metric_files.total(),
        permits_reclaimed=slots.permits_reclaimed(),
        endpoints=tuple(registry.endpoint_states()),
        models=tuple(registry.model_states(limiter.limit)),
        discovered={key: len(urls) for key, urls in registry.found().items()},
        waiting=dict(registry.waiting()),
        tenants=tenants(),
    )
