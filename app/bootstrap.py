"""Build the router: settings become shared memory, metrics, models and the application, all in one record.

`build_router` runs in the arbiter, before any worker is forked: every worker inherits what is made here. Importing this
module does no work.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from wsgiref.types import WSGIApplication

from app.admission import limiter as limiter_module
from app.admission import model_limit, model_traffic, tenant_limit
from app.admission.demand import DemandMeter
from app.admission.limiter import Limiter
from app.admission.model_traffic import TrafficCounts
from app.api.admin.access import access_to
from app.api.admin.live import LiveFeed
from app.api.admin.live_facts import LiveFacts
from app.api.admin.records import RequestRecords
from app.api.admin.resources import AdminApi
from app.api.application import create_app
from app.api.dispatch import Dispatcher
from app.auth import layouts as auth_layouts
from app.auth.building import Auth, build_auth
from app.config.listener_tls import listener_tls
from app.config.routes_source import DOCUMENT_FORMAT
from app.config.settings import Settings
from app.net.tls_files import TlsContext, stale_files, validities
from app.observability import metric_files as metric_files_module
from app.observability import request_record, tracing, unused_log
from app.observability.metric_files import MetricFiles
from app.observability.metrics import Metrics, SharedState, keep_files_per_slot
from app.observability.metrics_directory import MetricsDirectory, open_directory
from app.routing import (
    back_off,
    created_responses,
    endpoint_pool,
    endpoint_records,
    last_errors,
    load_reports,
    prefix_history,
    retry_budget,
    route_store,
)
from app.routing.building import Models, build_models
from app.routing.endpoint_wait import EndpointWait
from app.routing.inherited import Inherited
from app.routing.registry import ModelRegistry
from app.routing.route_store import RouteStore
from app.shared_memory import connection_counts as connection_counts_module
from app.shared_memory import counters as counters_module
from app.shared_memory import drain as drain_module
from app.shared_memory import leader as leader_module
from app.shared_memory import request_ring
from app.shared_memory import slots as slots_module
from app.shared_memory.connection_counts import ConnectionCounts
from app.shared_memory.counters import InflightCounters
from app.shared_memory.drain import Drain
from app.shared_memory.leader import Leader
from app.shared_memory.request_ring import RequestRing
from app.shared_memory.slots import Slots
from app.shared_memory.table import SharedTable

if TYPE_CHECKING:
    from app.observability.otel import Tracing


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
    ring: RequestRing
    metrics: Metrics
    metric_files: MetricFiles
    metrics_directory: MetricsDirectory
    models: Models
    auth: Auth
    admin: AdminApi
    live: LiveFeed
    tracing: "Tracing | None"
    tls: TlsContext | None
    """That of `BIND`, if it takes TLS."""
    application: WSGIApplication

    def log_unused(self, *, always: bool = False) -> None:
        """Warn of what has no effect, if the files that this process has read last say so and others did not before."""
        keys = None if self.auth.publisher is None else self.auth.publisher.read
        found = self.models.source.unused(keys, traced=self.tracing is not None)
        unused_log.log_unused(self.table, found, always=always)

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
    limiter, drain, ring = _limiter(settings, table), Drain(table), RequestRing(table)
    counters, tenant_counters = InflightCounters(table), InflightCounters(table, tenant_limit.COUNTERS)
    traffic = TrafficCounts(table, counters)
    metric_files, connection_counts = MetricFiles(table), ConnectionCounts(table)
    slots = Slots(table, (counters, traffic, limiter, metric_files, connection_counts, tenant_counters))
    metrics = _metrics(metrics_directory, slots, metric_files)
    models = build_models(settings, environ, table, traffic, metrics)
    auth, traced = build_auth(settings, table, tenant_counters, metrics.auth), tracing.load(environ, metrics)
    endpoint_wait = EndpointWait(models.registry, table, counters, drain, settings.queue_size)
    dispatcher = _dispatcher(settings, models.registry, limiter, drain, endpoint_wait, metrics, traced)
    tls, admin = listener_tls(settings), _admin_api(settings, limiter, models, ring, auth)
    read_state = partial(shared_state, limiter, slots, metric_files, models.registry, auth, tls, models.store)
    live = _live_feed(metrics, read_state, admin, drain)
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
        ring=ring,
        metrics=metrics,
        metric_files=metric_files,
        metrics_directory=metrics_directory,
        models=models,
        auth=auth,
        admin=admin,
        live=live,
        tracing=traced,
        tls=tls,
        application=create_app(settings, dispatcher, metrics, read_state, ring, admin, live, auth.authenticator),
    )


def tls_contexts(own: TlsContext | None, endpoints: ModelRegistry | Inherited) -> list[TlsContext]:
    """Returns the contexts of the listener and of the endpoints that are made of files."""
    return [*([] if own is None else [own]), *endpoints.tls_contexts()]


def _limiter(settings: Settings, table: SharedTable) -> Limiter:
    limiter = Limiter(table, settings.queue_size)
    if not table.adopted:
        limiter.set_limit(settings.max_concurrency)
    return limiter


def _metrics(directory: MetricsDirectory, slots: Slots, metric_files: MetricFiles) -> Metrics:
    keep_files_per_slot(directory.path, lambda: "arbiter" if slots.own is None else slots.own, metric_files)
    return Metrics(directory.path)


def _admin_api(settings: Settings, limiter: Limiter, models: Models, ring: RequestRing, auth: Auth) -> AdminApi:
    records = RequestRecords(ring, models.registry, auth.tenants)
    return AdminApi(access_to(settings), settings, models.registry, models.store, limiter, models.endpoints, records)


def _live_feed(metrics: Metrics, read_state: Callable[..., SharedState], admin: AdminApi, drain: Drain) -> LiveFeed:
    # Without the endpoints of the gauges: the reports of the admin API say more.
    return LiveFeed(metrics, partial(read_state, of_endpoints=False), LiveFacts(admin, drain).read, admin.endpoints.all)


def _dispatcher(  # noqa: PLR0913, PLR0917  # the parts of a request's path
    settings: Settings,
    registry: ModelRegistry,
    limiter: Limiter,
    drain: Drain,
    endpoint_wait: EndpointWait,
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
        endpoint_wait=endpoint_wait,
        token_metrics=metrics.token_metrics,
        tracing=traced,
    )


def shared_table(max_concurrency: int, queue_size: int, inherited: str | None = None) -> SharedTable:
    """Make the table for these limits, or adopt the one of the program before this one (see SharedTable)."""
    return SharedTable(
        (
            slots_module.LAYOUT,
            drain_module.LAYOUT,
            leader_module.LAYOUT,
            counters_module.LAYOUT,
            connection_counts_module.LAYOUT,
            request_ring.LAYOUT,
            limiter_module.layout(queue_size),
            metric_files_module.LAYOUT,
            model_limit.LAYOUT,
            model_traffic.LAYOUT,
            tenant_limit.LAYOUT,
            *auth_layouts.LAYOUTS,
            endpoint_records.LAYOUT,
            back_off.LAYOUT,
            load_reports.LAYOUT,
            last_errors.LAYOUT,
            prefix_history.LAYOUT,
            retry_budget.LAYOUT,
            endpoint_pool.LAYOUT,
            route_store.LAYOUT,
            created_responses.LAYOUT,
            unused_log.LAYOUT,
        ),
        identity=f"MAX_CONCURRENCY={max_concurrency} QUEUE_SIZE={queue_size} "
        f"{request_record.NUMBERED} {DOCUMENT_FORMAT}",
        inherited=inherited,
    )


def shared_state(  # noqa: PLR0913, PLR0917  # what the gauges are read from
    limiter: Limiter,
    slots: Slots,
    metric_files: MetricFiles,
    registry: ModelRegistry,
    auth: Auth | None = None,
    tls: TlsContext | None = None,
    routes: RouteStore | None = None,
    *,
    of_endpoints: bool = True,
) -> SharedState:
    """What the gauges say now. `tls` is that of the listener."""
    inflight, queued = limiter.snapshot()
    contexts = tls_contexts(tls, registry)
    return SharedState(
        inflight=inflight,
        queued=queued,
        max_concurrency=limiter.limit,
        workers=slots.live_workers(),
        metric_files_in_memory=metric_files.total(),
        permits_reclaimed=slots.permits_reclaimed(),
        endpoints=tuple(registry.endpoint_states()) if of_endpoints else (),
        models=tuple(registry.model_states(limiter.limit)),
        discovered={key: len(urls) for key, urls in registry.found().items()},
        waiting=dict(registry.waiting()),
        tenants={} if auth is None else auth.inflight(),
        stale_keys={} if auth is None else auth.stale(),
        stale_tls_files=stale_files(contexts),
        certificates=validities(contexts),
        routes_are_stale=routes is not None and bool(routes.stale[0]),
    )
