"""The WSGI application: the endpoints, the error handling, and the account that is kept of every exchange."""

from typing import Any
from wsgiref.types import WSGIApplication

import falcon
import structlog

from app.backends import Model
from app.config import Settings
from app.drain import Drain
from app.exchange import Exchange, with_exchange
from app.limiter import Limiter
from app.metrics import Metrics
from app.resources import problems
from app.resources.health import HealthzResource, ReadyzResource
from app.resources.infer import ROUTE, InferResource
from app.resources.metrics import MetricsResource

_log = structlog.get_logger("router.access")


def create_app(settings: Settings, limiter: Limiter, metrics: Metrics, model: Model, drain: Drain) -> WSGIApplication:
    """The router's application over these parts."""
    app = falcon.App()
    app.req_options.strip_url_path_trailing_slash = False
    problems.install(app)
    app.add_route("/healthz", HealthzResource())
    app.add_route("/readyz", ReadyzResource(model, drain))
    app.add_route("/metrics", MetricsResource(metrics, settings.admin_port))
    app.add_route(ROUTE, InferResource(settings, limiter, model, drain))

    def on_end(exchange: Exchange) -> None:
        if exchange.route is not None:
            _count(metrics, exchange)
        if settings.access_log == "all" or (settings.access_log == "errors" and exchange.status >= 400):
            _log_access(exchange)

    return with_exchange(app, on_end)


def _count(metrics: Metrics, exchange: Exchange) -> None:
    """Enter an inference request in the metrics. Probes and scrapes have no route, so they don't count."""
    total = exchange.seconds()
    metrics.requests_child(exchange.route, exchange.model, str(exchange.status)).inc()
    metrics.request_seconds_child(exchange.route, exchange.model).observe(total)
    if exchange.refusal is not None:
        metrics.refusals_child[exchange.refusal].inc()
    if exchange.permit is not None:
        metrics.queue_seconds.observe(exchange.queue_s)
        metrics.model_seconds_child(exchange.model).observe(exchange.model_s)
    metrics.overhead_seconds.observe(max(0.0, total - exchange.queue_s - exchange.model_s))


def _log_access(exchange: Exchange) -> None:
    environ: dict[str, Any] = exchange.environ
    _log.info(
        "request",
        method=environ["REQUEST_METHOD"],
        path=environ["PATH_INFO"],
        status=exchange.status,
        client=environ.get("REMOTE_ADDR", ""),
        request_id=exchange.request_id,
        total_ms=round(exchange.seconds() * 1e3, 3),
        queue_ms=round(exchange.queue_s * 1e3, 3),
        model_ms=round(exchange.model_s * 1e3, 3),
    )
