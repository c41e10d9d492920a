"""GET /metrics: Prometheus text or OpenMetrics, as the scraper prefers."""

import falcon

from app.metrics import Metrics


class MetricsResource:
    """The page of all workers, from whichever of them answers; on the admin listener only, if there is one."""

    def __init__(self, metrics: Metrics, admin_port: str | None) -> None:
        self._metrics = metrics
        self._admin_port = admin_port

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        if self._admin_port is not None and req.env["SERVER_PORT"] != self._admin_port:
            raise falcon.HTTPNotFound(description="metrics are served on the admin listener, ADMIN_BIND")
        resp.data, resp.content_type = self._metrics.page(req.get_header("Accept") or "")

    on_head = on_get
