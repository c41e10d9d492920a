"""What is known of each endpoint, for the people who run the router: its state, why, until when, its loads."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from app.config import route_schema
from app.native import now_ms
from app.routing.back_off import pair
from app.routing.endpoint import SharedRouting
from app.routing.endpoint_drain import EndpointDrain
from app.routing.last_errors import LastError
from app.routing.load_reports import UNIT, stale_ms
from app.routing.outlier_detection import Circuit
from app.routing.registry import ModelRegistry


class EndpointReport(NamedTuple):
    """One endpoint, over all workers."""

    id: int
    """That of the counters: the URL keeps it while it is served."""
    url: str
    models: list[str]
    state: str
    """`draining`, `ejected`, `unhealthy`, `backing_off`, `unknown` or `healthy`: the first that holds."""
    why: str | None
    until_s: float | None
    """Seconds until the state ends by itself, None where that is not known."""
    inflight: int
    load: dict[str, Any] | None
    """What the endpoint has reported of itself, where a `least_load` model uses it."""
    last_error: LastError | None


class EndpointReports:
    """The endpoints of the current routes, in one worker."""

    def __init__(self, registry: ModelRegistry, shared: SharedRouting, drain: EndpointDrain) -> None:
        self._registry = registry
        self._shared = shared
        self._drain = drain

    def all(self) -> Iterator[EndpointReport]:
        """Yields every endpoint once, in the order of the routes."""
        models: dict[str, list[route_schema.Model]] = {}
        for model in self._registry.routes.models:
            for version in model.versions:
                for endpoint in version.endpoints:
                    of_url = models.setdefault(endpoint.url, [])
                    if model not in of_url:
                        of_url.append(model)
        ids = self._registry.model_ids()
        for endpoint, shared_id, _ in self._registry.checks():
            yield self._report(endpoint.url, shared_id, models[endpoint.url], ids)

    def set_draining(self, shared_id: int, *, draining: bool) -> EndpointReport | None:
        """Begin or end the drain of the endpoint with this id. Returns its report, None if no endpoint has the id."""
        generation = self._registry.generation
        for report in self.all():
            if report.id == shared_id:
                if not self._drain.set(shared_id, report.url, generation, draining=draining):
                    return None
                return next((after for after in self.all() if after.id == shared_id), None)
        return None

    def _report(
        self, url: str, shared_id: int, models: list[route_schema.Model], model_ids: dict[str, int]
    ) -> EndpointReport:
        shared = self._shared
        state, why, until_ms = self._state(shared_id, models, model_ids)
        return EndpointReport(
            shared_id,
            url,
            [model.name for model in models],
            state,
            why,
            max(0, until_ms - now_ms()) / 1000 if until_ms else None,
            shared.counters.total(shared_id),
            self._load(shared_id, models),
            shared.last_errors.of(shared_id),
        )

    def _state(  # noqa: PLR0911  # one for each state
        self, shared_id: int, models: list[route_schema.Model], model_ids: dict[str, int]
    ) -> tuple[str, str | None, int]:
        """Returns the state, why it is that, and when it ends (ms of the monotonic clock, 0: not by itself)."""
        health, now = self._shared.health, now_ms()
        if health.is_draining(shared_id):
            return "draining", "an operator keeps new requests away; those in progress finish", 0
        if health.is_ejected(shared_id, now):
            if self._shared.outliers.circuit(shared_id) is Circuit.HALF_OPEN:
                return "ejected", "it failed too often; one request tries whether it serves again", 0
            return "ejected", "it failed too often", health.unavailable_until(shared_id)
        if health.is_unhealthy(shared_id):
            return "unhealthy", "its health checks fail", 0
        backing_off = {
            model.name: until
            for model in models
            if (until := self._shared.back_offs.until_ms[pair(shared_id, model_ids[model.name])]) > now
        }
        if backing_off:
            why = f"it refused requests of {', '.join(backing_off)}, and gets more only where no other is available"
            return "backing_off", why, max(backing_off.values())
        if not health.is_known(shared_id):
            return "unknown", "neither a health check nor a request has succeeded yet", 0
        return "healthy", None, 0

    def _load(self, shared_id: int, models: list[route_schema.Model]) -> dict[str, Any] | None:
        by_load = [model for model in models if model.balancing == "least_load"]
        if not by_load:
            return None
        found = self._shared.loads.read(shared_id, now_ms(), stale_ms(by_load[0]))
        return {
            "waiting": found.waiting / UNIT,
            "others": found.others / UNIT,
            "cache": found.cache / UNIT,
            "stale": found.is_stale,
        }
