"""GET /metrics: Prometheus text or OpenMetrics, as the scraper prefers."""

from collections.abc import Callable

import falcon

from app.observability.metrics import Metrics, SharedState


class MetricsResource:
    """The page of all workers, from whichever of them answers; on the admin listener only, if there is one."""

    def __init__(self, metrics: Metrics, read_state: Callable[[], SharedState], admin_port: str | None) -> None:
        self._read_state = read_state
        self._metrics = metrics
        self._admin_port = admin_port

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        if self._admin_port is not None and req.env["SERVER_PORT"] != self._admin_port:
            raise falcon.HTTPNotFound(description="metrics are served on the admin listener, ADMIN_BIND")
        accept = req.get_header("Accept") or ""
        openmetrics = _quality(accept, "application/openmetrics-text") >= _quality(accept, "text/plain")
        resp.data, resp.content_type = self._metrics.page(self._read_state(), accept if openmetrics else "")

    on_head = on_get


def _quality(accept: str, media_type: str) -> float:
    """How much the scraper wants a media type (RFC 9110 section 12.5.1); the parameters of its versions aside."""
    best = 0.0
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name == media_type:
            given = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
            try:
                best = max(best, float(given[0]) if given else 1.0)
            except ValueError:
                best = max(best, 1.0)
    return best
