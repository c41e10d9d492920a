"""What is done at the end of every exchange: it is counted, recorded, traced and logged."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from app.api.exchange import Exchange
from app.api.request_recorder import RequestRecorder
from app.config.settings import Settings
from app.observability import logs
from app.observability.metrics import Metrics
from app.shared_memory.request_ring import RequestRing

_BAD_REQUEST = HTTPStatus.BAD_REQUEST.value  # a member of an enumeration is looked up by a call


def at_end_of_exchange(settings: Settings, metrics: Metrics, ring: RequestRing | None) -> Callable[[Exchange], None]:
    """Returns what is called at the end of every exchange: it is counted, recorded, and logged."""
    keep = None if ring is None else RequestRecorder(ring).record
    log = logs.access_logger(settings)
    logged_from = {"all": 0, "errors": 400, "off": 1000}[settings.access_log]

    def record(exchange: Exchange) -> None:
        if exchange.route is not None:
            total = exchange.seconds()
            _count(metrics, exchange, total)
            if keep is not None:
                keep(exchange, total)
        if exchange.trace is not None:
            exchange.trace.end(exchange)
        if exchange.status >= logged_from:
            _log_access(log, exchange)

    return record


def _count(metrics: Metrics, exchange: Exchange, total: float) -> None:
    """Enter an inference request in the metrics. Probes and scrapes have no route, so they don't count."""
    metrics.requests(exchange.route, exchange.model, exchange.status).inc()
    metrics.request_seconds(exchange.route, exchange.model).observe(total)
    if exchange.rejection is not None:
        metrics.rejections[exchange.rejection].inc()
        if exchange.traffic is not None:
            exchange.traffic.count_rejected()
        if exchange.caller is not None:
            metrics.auth.tenant_rejected(exchange.caller.label, exchange.rejection).inc()
    for change in exchange.fallbacks:
        metrics.fallbacks(*change).inc()
    if exchange.permit is not None:
        metrics.queue_seconds.observe(exchange.queue_s)
        metrics.model_seconds(exchange.model).observe(exchange.model_s)
        # What only asks about a model or a response is quick, and says nothing of how long a request takes.
        if exchange.traffic is not None and exchange.status < _BAD_REQUEST and exchange.method == "POST":
            exchange.traffic.count_served(exchange.model_s - exchange.earlier_s)
    metrics.overhead_seconds.observe(max(0.0, total - exchange.queue_s - exchange.model_s))


def _log_access(log: Any, exchange: Exchange) -> None:
    endpoint = exchange.attempts[-1].endpoint_url if exchange.attempts else None
    try:
        log.info(
            "request",
            method=exchange.method,
            path=exchange.path,
            status=exchange.status,
            **({"model": exchange.model} if exchange.model else {}),
            **({"endpoint": endpoint} if endpoint else {}),
            **({"rejection": exchange.rejection} if exchange.rejection else {}),
            **({"error": exchange.error} if exchange.error else {}),
            **({} if exchange.caller is None else exchange.caller.logged()),
            client=exchange.client_address,
            request_id=exchange.request_id,
            **({} if exchange.trace is None else {"trace_id": exchange.trace.trace_id}),
            total_ms=round(exchange.seconds() * 1e3, 3),
            queue_ms=round(exchange.queue_s * 1e3, 3),
            model_ms=round(exchange.model_s * 1e3, 3),
        )
    except (OSError, ValueError):
        pass  # nobody reads the log any more; requests are served all the same
