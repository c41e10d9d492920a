"""The WSGI application: which paths there are, what serves each, and in which form its errors are."""

from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import WSGIApplication

import falcon

from app.api import listed_paths, own_paths
from app.api.accounting import at_end_of_exchange
from app.api.admin import routes
from app.api.admin.live import LiveFeed
from app.api.admin.resources import AdminApi
from app.api.authentication import Authentication
from app.api.cors import with_cors
from app.api.dispatch import Dispatcher
from app.api.error_responses import ErrorResponses
from app.api.exact_paths import ExactRouter
from app.api.health import HealthzResource, Readiness, ReadyzResource
from app.api.listed_paths import ListedPaths
from app.api.metrics_page import MetricsResource
from app.api.openai import ModelsResource
from app.api.openapi import OpenApiResource
from app.api.operations import OperationResource
from app.api.outermost import with_exchange
from app.api.v2 import ModelReadyResource, ServerResource
from app.api.v2_models import RepositoryIndexResource, StatisticsResource
from app.auth.authenticator import Authenticator
from app.config.settings import Settings
from app.observability.metrics import Metrics, SharedState
from app.protocols import adapters, infer, openai, v2
from app.protocols.interfaces import ErrorBody, Operation, ProtocolAdapter
from app.shared_memory.request_ring import RequestRing

_App = falcon.App[falcon.Request, falcon.Response]


def create_app(  # noqa: PLR0913, PLR0917  # the parts that it shows
    settings: Settings,
    dispatcher: Dispatcher,
    metrics: Metrics,
    read_state: Callable[[], SharedState],
    ring: RequestRing | None = None,
    admin: AdminApi | None = None,
    live: LiveFeed | None = None,
    authenticator: Authenticator | None = None,
) -> WSGIApplication:
    """Returns the router's application. `read_state` returns what the gauges of `/metrics` say.

    Without `ring` no records of requests are written. Without `admin` and `live`, or ADMIN_BIND, there is no admin API
    and no status page. `authenticator` finds the caller of a request; without it, everyone may use the router.
    """
    router = ExactRouter(ListedPaths(dispatcher).find)
    app = falcon.App(router=router)
    app.req_options.strip_url_path_trailing_slash = False
    app.resp_options.default_media_type = None  # type: ignore[assignment]  # a model server's response may have no type
    errors = ErrorResponses(router, adapters.PROTOCOLS, settings.admin_port)
    errors.install(app)
    _add_authentication(app, router, settings, metrics, authenticator)
    readiness = Readiness(dispatcher.registry, dispatcher.drain, _reasons_at(settings))
    _add_probes(app, readiness)
    app.add_route("/metrics", MetricsResource(metrics, read_state, settings.admin_port))
    app.add_route(own_paths.DOCUMENT, OpenApiResource(settings))
    prompts = infer.operation(settings.pod_name, settings.kv_endpoints_masked)
    app.add_route(infer.ROUTE, OperationResource(dispatcher, None, [prompts]))
    for adapter in adapters.PROTOCOLS:
        for template, error_body in _add_operations(app, dispatcher, adapter, adapter.operations):
            errors.register(template, error_body or adapter.error_body)
    errors.register(listed_paths.TEMPLATE, openai.ADAPTER.error_body)
    statistics = StatisticsResource(dispatcher.registry, metrics, settings.admin_port)
    _add_own_routes(app, errors, dispatcher, readiness, statistics)
    if admin is not None and live is not None and settings.admin_bind is not None:
        routes.add_routes(app, admin, live)
    return with_cors(with_exchange(app, at_end_of_exchange(settings, metrics, ring)), settings.cors_origins)


def _add_probes(app: _App, readiness: Readiness) -> None:
    app.add_route("/healthz", HealthzResource())
    app.add_route("/readyz", ReadyzResource(readiness))


def _reasons_at(settings: Settings) -> str | None:
    """Returns the port at which probes say why nothing is served; None: all do, as nobody needs a credential.

    Probes need none, and must tell nobody of models. So with authentication they tell on the admin listener only.
    """
    return (settings.admin_port or "") if settings.authenticates else None


def _add_authentication(
    app: _App, router: ExactRouter, settings: Settings, metrics: Metrics, authenticator: Authenticator | None
) -> None:
    """Have every request checked, if there is anything to check."""
    digests = tuple(map(bytes.fromhex, settings.admin_key_sha256))
    if authenticator is not None or digests:
        preflight = bool(settings.cors_origins)
        app.add_middleware(Authentication(authenticator, digests, metrics.auth, router, allows_preflight=preflight))


def _add_operations(
    app: _App, dispatcher: Dispatcher, adapter: ProtocolAdapter | None, operations: Iterable[Operation]
) -> Iterator[tuple[str, ErrorBody | None]]:
    """Serve these operations; yields each URI template and its form of errors. Operations at one path share both."""
    at_template: dict[str, list[Operation]] = {}
    for operation in operations:
        for template in operation.templates:
            at_template.setdefault(template, []).append(operation)
    for template, those in at_template.items():
        app.add_route(template, OperationResource(dispatcher, adapter, those))
        yield template, those[0].error_body


def _add_own_routes(
    app: _App, errors: ErrorResponses, dispatcher: Dispatcher, readiness: Readiness, statistics: StatisticsResource
) -> None:
    """Add what a protocol has and the router serves itself."""
    models = ModelsResource(dispatcher)
    server = ServerResource(readiness)
    ready = ModelReadyResource(dispatcher)
    index = RepositoryIndexResource(dispatcher)
    for adapter, template, resource, suffix in (
        (openai.ADAPTER, "/v1/models", models, None),
        (openai.ADAPTER, "/v1/models/{name:path}", models, "one"),
        (v2.ADAPTER, "/v2", server, None),
        (v2.ADAPTER, "/v2/health/live", server, "live"),
        (v2.ADAPTER, "/v2/health/ready", server, "ready"),
        (v2.ADAPTER, "/v2/models/stats", statistics, None),
        (v2.ADAPTER, "/v2/repository/index", index, None),
        *((v2.ADAPTER, template, ready, None) for template in v2.READY_TEMPLATES),
    ):
        app.add_route(template, resource, suffix=suffix)
        errors.register(template, adapter.error_body)
