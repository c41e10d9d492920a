"""The WSGI application: the endpoints, the error handling, and the account that is kept of every exchange."""

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import falcon

from app.admission.limiter import Limiter
from app.api import error_responses as problems
from app.api import infer, openai, v2
from app.api.dispatch import Dispatcher
from app.api.exchange import Exchange, with_exchange
from app.api.health import HealthzResource, ReadyzResource
from app.api.infer import InferResource
from app.api.metrics_page import MetricsResource
from app.api.openai import GenerationResource, ModelsResource
from app.api.v2 import ModelResource, ServerResource
from app.config.settings import Settings
from app.observability import logs
from app.observability.metrics import Metrics, SharedState
from app.routing.registry import ModelRegistry
from app.shared_memory.drain import Drain


def create_app(
    settings: Settings,
    limiter: Limiter,
    metrics: Metrics,
    catalogue: ModelRegistry,
    drain: Drain,
    read_state: Callable[[], SharedState],
) -> WSGIApplication:
    """The router's application over these parts."""
    app = falcon.App()
    app.req_options.strip_url_path_trailing_slash = False
    app.resp_options.default_media_type = None  # type: ignore[assignment]  # a model server's answer may have no type
    problems.install(app)
    app.add_route("/healthz", HealthzResource())
    app.add_route("/readyz", ReadyzResource(catalogue, drain))
    app.add_route("/metrics", MetricsResource(metrics, read_state, settings.admin_port))
    door = Dispatcher(catalogue, limiter, drain, settings.max_body_bytes, settings.queue_timeout_ms / 1000)
    app.add_route(infer.ROUTE, InferResource(settings, door))
    for path in openai.ROUTES:
        app.add_route(path, GenerationResource(door, path))
    models = ModelsResource(catalogue)
    app.add_route("/v1/models", models)
    app.add_route("/v1/models/{name:path}", models, suffix="one")
    server = ServerResource(catalogue, drain)
    app.add_route("/v2", server)
    app.add_route("/v2/health/live", server, suffix="live")
    app.add_route("/v2/health/ready", server, suffix="ready")
    model = ModelResource(door)
    for path in (v2.PREFIX + "/{name}", v2.PREFIX + "/{name}/versions/{version}"):
        app.add_route(path, model)
        app.add_route(path + "/ready", model, suffix="ready")
        app.add_route(path + "/infer", model, suffix="infer")

    log = logs.access_logger(settings)
    logged_from = {"all": 0, "errors": 400, "off": 1000}[settings.access_log]

    def on_end(exchange: Exchange) -> None:
        if exchange.route is not None:
            _count(metrics, exchange)
        if exchange.status >= logged_from:
            _log_access(log, exchange)

    return with_exchange(_with_known_method(app), on_end)


def _with_known_method(app: WSGIApplication) -> WSGIApplication:
    """Falcon calls a method that HTTP doesn't know a bad request; to us it is one that no path takes, so 405."""

    def known(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in falcon.constants.COMBINED_METHODS:
            environ["REQUEST_METHOD"] = "CONNECT"
        return app(environ, start_response)

    return known


def _count(metrics: Metrics, exchange: Exchange) -> None:
    """Enter an inference request in the metrics. Probes and scrapes have no route, so they don't count."""
    total = exchange.seconds()
    metrics.requests(exchange.route, exchange.model, exchange.status).inc()
    metrics.request_seconds(exchange.route, exchange.model).observe(total)
    if exchange.refusal is not None:
        metrics.rejections[exchange.refusal].inc()
    if exchange.permit is not None:
        metrics.queue_seconds.observe(exchange.queue_s)
        metrics.model_seconds(exchange.model).observe(exchange.model_s)
    metrics.overhead_seconds.observe(max(0.0, total - exchange.queue_s - exchange.model_s))


def _log_access(log: Any, exchange: Exchange) -> None:
    environ: dict[str, Any] = exchange.environ
    try:
        log.info(
            "request",
            method=exchange.method,
            path=environ["PATH_INFO"],
            status=exchange.status,
            client=environ.get("REMOTE_ADDR", ""),
            request_id=exchange.request_id,
            total_ms=round(exchange.seconds() * 1e3, 3),
            queue_ms=round(exchange.queue_s * 1e3, 3),
            model_ms=round(exchange.model_s * 1e3, 3),
        )
    except (OSError, ValueError):
        pass  # nobody takes what is logged any more; requests are served all the same
