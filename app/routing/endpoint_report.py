"""What is known of each endpoint, for the people who run the router: its state, why, until when, its loads."""

from collections.abc import Iterable, Iterator, Mapping
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
    """One endpoint, over all workers. Times are points in time: two reports are equal if nothing has happened."""

    id: int
    """That of the counters: the URL keeps it while it is served."""
    url: str
    models: list[str]
    state: str
    """`draining`, `ejected`, `unhealthy`, `backing_off`, `unknown` or `healthy`: the first that holds."""
    why: str | None
    until_ms: int
    """When the state ends by itself, by the monotonic clock; 0 where that is not known."""
    in_flight: int
    load: dict[str, Any] | None
    """What the endpoint has reported of itself, where a `least_load` model uses it."""
    last_error: LastError | None


class _Place(NamedTuple):
    """What the routes say of an endpoint."""

    id: int
    url: str
    names: list[str]
    """Of its models."""
    pairs: list[tuple[str, int]]
    """The names again, each with the index of the back-off."""
    by_load: route_schema.Model | None
    """The first of its models that uses its load."""


class EndpointReports:
    """The endpoints of the current routes, in one worker."""

    def __init__(self, registry: ModelRegistry, shared: SharedRouting, drain: EndpointDrain) -> None:
        self._registry = registry
        self._shared = shared
        self._drain = drain
        self._routes: route_schema.Routes | None = None
        self._places: list[_Place] = []
        """Those of `_routes`."""

    def all(self) -> Iterator[EndpointReport]:
        """Yields every endpoint once, in the order of the routes."""
        registry = self._registry
        while (routes := registry.routes) is not self._routes:
            # Each of these is of the routes that are current when it is read, and others may be published in between.
            ids, checks = registry.model_ids(), list(registry.checks())
            if registry.routes is routes:
                self._places, self._routes = list(_places_in(routes, ids, checks)), routes
        return map(self._report, self._places)

    def set_draining(self, shared_id: int, *, draining: bool) -> EndpointReport | None:
        """Begin or end the drain of the endpoint with this id. Returns its report, None if no endpoint has the id."""
        generation = self._registry.generation
        for report in self.all():
            if report.id == shared_id:
                if not self._drain.set(shared_id, report.url, generation, draining=draining):
                    return None
                return next((after for after in self.all() if after.id == shared_id), None)
        return None

    def _report(self, place: _Place) -> EndpointReport:
        shared, shared_id = self._shared, place.id
        state, why, until_ms = self._state(shared_id, place.pairs)
        return EndpointReport(
            shared_id,
            place.url,
            place.names,
            state,
            why,
            until_ms,
            shared.counters.total(shared_id),
            None if place.by_load is None else self._load(shared_id, place.by_load),
            shared.last_errors.of(shared_id),
        )

    def _state(  # noqa: PLR0911  # one for each state
        self, shared_id: int, pairs: list[tuple[str, int]]
    ) -> tuple[str, str | None, int]:
        """Returns the state, why it is that, and when it ends (ms of the monotonic clock, 0: not by itself)."""
        health, now, back_off_until_ms = self._shared.health, now_ms(), self._shared.back_offs.until_ms
        if health.is_draining(shared_id):
            return "draining", "an operator keeps new requests away; those in progress finish", 0
        if health.is_ejected(shared_id, now):
            if self._shared.outliers.circuit(shared_id) is Circuit.HALF_OPEN:
                return "ejected", "it failed too often; one request tries whether it serves again", 0
            return "ejected", "it failed too often", health.unavailable_until(shared_id)
        if health.is_unhealthy(shared_id):
            return "unhealthy", "its health checks fail", 0
        backing_off = {name: until for name, at in pairs if (until := back_off_until_ms[at]) > now}
        if backing_off:
            why = f"it refused requests of {', '.join(backing_off)}, and gets more only where no other is available"
            return "backing_off", why, max(backing_off.values())
        if not health.is_known(shared_id):
            return "unknown", "neither a health check nor a request has succeeded yet", 0
        return "healthy", None, 0

    def _load(self, shared_id: int, model: route_schema.Model) -> dict[str, Any]:
        found = self._shared.loads.read(shared_id, now_ms(), stale_ms(model))
        return {
            "waiting": found.waiting / UNIT,
            "others": found.others / UNIT,
            "cache": found.cache / UNIT,
            "stale": found.is_stale,
        }


def _places_in(
    routes: route_schema.Routes,
    ids: Mapping[str, int],
    checks: Iterable[tuple[route_schema.Endpoint, int, route_schema.Model]],
) -> Iterator[_Place]:
    models: dict[str, list[route_schema.Model]] = {}
    for model in routes.models:
        for version in model.versions:
            for endpoint in version.endpoints:
                of_url = models.setdefault(endpoint.url, [])
                if model not in of_url:
                    of_url.append(model)
    for endpoint, shared_id, _ in checks:
        own = models[endpoint.url]
        pairs = [(model.name, pair(shared_id, ids[model.name])) for model in own]
        by_load = next((model for model in own if model.balancing == "least_load"), None)
        yield _Place(shared_id, endpoint.url, [model.name for model in own], pairs, by_load)
