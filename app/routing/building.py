"""The models as the settings and routes have them, built once, before any worker is forked."""

from collections.abc import Mapping
from typing import NamedTuple

from app.admission import model_limit
from app.admission.model_traffic import TrafficCounts
from app.config.credentials import Credentials
from app.config.routes_source import RoutesSource
from app.config.settings import Settings
from app.discovery import dns_source
from app.discovery.api_server import api_server_in
from app.discovery.discovery import Discovery
from app.observability.metrics import Metrics
from app.routing import back_off, created_responses, endpoint_records, prefix_history, retry_budget, route_store
from app.routing.endpoint import SharedRouting
from app.routing.endpoint_drain import EndpointDrain
from app.routing.endpoint_heads import EndpointHeads
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_report import EndpointReports
from app.routing.health_checks import HealthChecks
from app.routing.inherited import Inherited
from app.routing.last_errors import LastErrors
from app.routing.load_reports import LoadReports
from app.routing.load_scrapes import LoadScrapes
from app.routing.outlier_detection import OutlierDetector
from app.routing.publisher import Publisher
from app.routing.registry import ModelRegistry
from app.routing.route_store import RouteStore
from app.shared_memory.table import SharedTable


class Models(NamedTuple):
    """The models, and what keeps them up to date."""

    registry: ModelRegistry
    publisher: Publisher
    health_checks: HealthChecks
    discovery: Discovery
    load_scrapes: LoadScrapes
    store: RouteStore
    endpoints: EndpointReports
    inherited: Inherited
    source: RoutesSource


def build_models(
    settings: Settings, environ: Mapping[str, str], table: SharedTable, traffic: TrafficCounts, metrics: Metrics
) -> Models:
    """Publish the routes, and build the registry that makes models of them. Raises RoutesError."""
    counters = traffic.inflight
    records, back_offs = endpoint_records.EndpointRecords(table), back_off.BackOffs(table)
    outliers, health, budgets = OutlierDetector(records), EndpointHealth(records), retry_budget.RetryBudgets(table)
    limits, loads = model_limit.ModelLimits(table, counters), LoadReports(table, counters)
    errors = LastErrors(table)
    parts = (records, back_offs, budgets, limits, traffic, loads, errors)
    store = route_store.RouteStore(table, counters, parts, records.appear)
    source = RoutesSource(settings, environ)
    publisher = Publisher(source, store, metrics)
    publisher.publish()
    prefixes = prefix_history.PrefixHistory(table)
    shared = SharedRouting(
        table, counters, outliers, health, back_offs, budgets, limits, traffic, metrics, loads, prefixes, errors
    )
    heads = EndpointHeads(Credentials(environ))
    registry = ModelRegistry(
        store,
        shared,
        created_responses.CreatedResponses(table),
        heads,
        simulated_latency_s=settings.simulated_latency_ms / 1000,
        simulated_token_s=settings.simulated_token_ms / 1000,
        assume_healthy=settings.initial_health == "healthy",
    )
    discovery = Discovery(publisher.publish_found, api_server_in(environ), metrics.count_discovery)
    if any(source.kind == "dns" for source in registry.sources().values()):
        dns_source.prepare()
    reports = EndpointReports(registry, shared, EndpointDrain(records, counters))
    checks, scrapes = HealthChecks(registry, health, errors), LoadScrapes(registry, loads)
    inherited = Inherited(store, heads)
    return Models(registry, publisher, checks, discovery, scrapes, store, reports, inherited, source)
