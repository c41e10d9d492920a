"""GET /metrics: Prometheus text or OpenMetrics, as the scraper prefers."""

from collections.abc import Callable

import falcon

from app.observability.metrics import Metrics, SharedState

_OPENMETRICS = "application/openmetrics-text"


class MetricsResource:
    """The page of all workers, from any of them; on the admin listener only, if there is one."""

    def __init__(self, metrics: Metrics, read_state: Callable[[], SharedState], admin_port: str | None) -> None:
        self._metrics = metrics
        self._read_state = read_state
        self._admin_port = admin_port

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        check_admin_port(req, self._admin_port)
        openmetrics = req.client_prefers((_OPENMETRICS, "text/plain")) == _OPENMETRICS
        pieces, resp.content_type = self._metrics.page(self._read_state(), req.accept if openmetrics else "")
        resp.set_stream(iter(pieces), sum(map(len, pieces)))

    on_head = on_get


def check_admin_port(req: falcon.Request, admin_port: str | None) -> None:
    """Raises HTTPNotFound if there is an admin listener and the request came elsewhere."""
    if admin_port is not None and req.env["SERVER_PORT"] != admin_port:
        raise falcon.HTTPNotFound(description="metrics are served on the admin listener, ADMIN_BIND")
