"""What people are told of every endpoint: its state in words, why it is in it, and until when."""

from typing import Any

from app.native import now_ms
from app.routing.back_off import BackOffs, pair
from app.routing.endpoint_health import EndpointHealth
from app.routing.outlier_detection import Circuit, OutlierDetector
from app.routing.registry import ModelRegistry


class EndpointViews:
    """The endpoints of the current routes, in one process."""

    def __init__(
        self, registry: ModelRegistry, health: EndpointHealth, outliers: OutlierDetector, back_offs: BackOffs
    ) -> None:
        self._registry = registry
        self._health = health
        self._outliers = outliers
        self._back_offs = back_offs

    def all(self) -> list[dict[str, Any]]:
        """Returns what is to be said of every endpoint, in the order of the routes."""
        models = self._models_by_url()
        inflight = {state.url: state.inflight for state in self._registry.endpoint_states()}
        found = []
        for endpoint, shared_id, _ in self._registry.checks():
            state, why, until = self._state(shared_id, models.get(endpoint.url, {}))
            found.append(
                {
                    "id": shared_id,
                    "url": endpoint.url,
                    "models": list(models.get(endpoint.url, {})),
                    "state": state,
                    "why": why,
                    "until_s": until,
                    "inflight": inflight.get(endpoint.url, 0),
                }
            )
        return found

    def _models_by_url(self) -> dict[str, dict[str, int]]:
        """Returns the models that each endpoint serves, with their ids."""
        found: dict[str, dict[str, int]] = {}
        for name, model_id in self._registry.model_ids().items():
            for version in self._registry.find(name).route.versions:
                for endpoint in version.endpoints:
                    found.setdefault(endpoint.url, {})[name] = model_id
        return found

    def _state(self, shared_id: int, models: dict[str, int]) -> tuple[str, str | None, float | None]:
        now, health = now_ms(), self._health
        left_ms = health.unavailable_until(shared_id) - now
        circuit = self._outliers.circuit(shared_id)
        if circuit is Circuit.HALF_OPEN:
            return "ejected", "one request tries whether it is well again", None
        if circuit is Circuit.OPEN:
            return "ejected", "too many requests failed", max(0.0, left_ms / 1000)
        if health.is_unhealthy(shared_id):
            return "unhealthy", "its health checks fail", None
        waits = {name: self._back_offs.until_ms[pair(shared_id, each)] - now for name, each in models.items()}
        refused = {name: wait for name, wait in waits.items() if wait > 0}
        if refused:
            return "backing_off", f"it refused requests of {', '.join(refused)}", max(refused.values()) / 1000
        return (
            ("healthy", None, None) if health.is_known(shared_id) else ("unknown", "nothing has reached it yet", None)
        )
