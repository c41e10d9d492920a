"""The model registry: what is published (route_store.py), made into models that can serve requests.

Every worker has its own, and rebuilds it when it finds before a request that a new generation was published. A request
keeps the model that it began with, so no request is lost by a change.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from app.admission.model_limit import ModelLimit
from app.config import route_schema
from app.config.routes_source import Document, counted_as, endpoints_of, names_in
from app.errors import ModelNotFound
from app.observability.metrics import EndpointState
from app.protocols.interfaces import Model
from app.routing.back_off import pair
from app.routing.endpoint import Endpoint, SharedRouting
from app.routing.endpoint_pool import EndpointPool
from app.routing.load_formats import ORCA_REQUEST
from app.routing.load_reports import stale_ms
from app.routing.remote_model import RemoteModel
from app.routing.route_store import RouteStore
from app.simulated.model import SimulatedModel
from app.upstream.dialer import Address
from app.upstream.pool import Pool
from app.upstream.resolver import Resolver


class RegisteredModel(NamedTuple):
    """A model, its route, and its own limit if it has one."""

    model: Model
    route: route_schema.Model
    limit: ModelLimit | None = None


class ModelRegistry:
    """All models, in one worker."""

    def __init__(
        self,
        store: RouteStore,
        shared: SharedRouting,
        *,
        simulated_latency_s: float,
        simulated_token_s: float,
        assume_healthy: bool,
    ) -> None:
        self.resolver = Resolver()
        """The names of all endpoints."""
        self._store = store
        self._shared = shared
        self._simulated_latency_s = simulated_latency_s
        self._simulated_token_s = simulated_token_s
        self._assume_healthy = assume_healthy
        self._generation = 0
        self._document = Document(route_schema.Routes(models=()))
        self._models: dict[str, RegisteredModel] = {}
        self._connections: dict[str, Pool] = {}
        self._shared_ids: Mapping[str, int] = {}

    def find(self, name: str | None) -> RegisteredModel:
        """Returns the model of this name or alias; without a name, the default one. Raises ModelNotFound."""
        models = self._current()
        try:
            return models[self._document.routes.default.name if name is None else name]
        except KeyError:
            names = ", ".join(model.name for model in self._document.routes.models)
            raise ModelNotFound(f"there is no model {str(name)[:100]!r}; there is {names}") from None

    def names(self) -> list[str]:
        """Returns names and aliases of all models."""
        return list(self._current())

    def unusable(self) -> str | None:
        """Returns why no request at all can be served, or None if some can."""
        reasons = [registered.model.unusable() for registered in self._current().values()]
        return "; ".join(sorted({str(reason) for reason in reasons})) if all(reasons) else None

    def checks(self) -> Iterable[tuple[route_schema.Endpoint, int, route_schema.Model]]:
        """Yields every endpoint once, with its id and the model that says how it is checked."""
        self._current()
        seen = set()
        for model in self._document.routes.models:
            for version in model.versions:
                for endpoint in version.endpoints:
                    if endpoint.url not in seen:
                        seen.add(endpoint.url)
                        yield endpoint, self._shared_ids[endpoint.url], model

    def reporting(self) -> Iterable[tuple[route_schema.Endpoint, int, route_schema.Model]]:
        """Yields every endpoint of a `least_load` model once, with its id and the model that says how it reports."""
        self._current()
        seen = set()
        for model in self._document.routes.models:
            if model.balancing == "least_load":
                for endpoint in chain.from_iterable(version.endpoints for version in model.versions):
                    if endpoint.url not in seen:
                        seen.add(endpoint.url)
                        yield endpoint, self._shared_ids[endpoint.url], model

    def endpoint_states(self) -> Iterable[EndpointState]:
        """Yields what the gauges say of every endpoint."""
        counters, health = self._shared.counters, self._shared.health
        stale = {
            endpoint.url: self._shared.loads.is_stale(shared_id, stale_ms(model))
            for endpoint, shared_id, model in self.reporting()
        }
        for endpoint, shared_id, _ in self.checks():
            url = endpoint.url
            yield EndpointState(url, counters.total(shared_id), health.is_up(shared_id), stale.get(url))

    def prune(self) -> None:
        """Close connections that are too old or have been idle for too long."""
        for connections in self._connections.values():
            connections.prune()

    def _current(self) -> dict[str, RegisteredModel]:
        if self._generation != self._store.generation:
            self._build()
        return self._models

    def _build(self) -> None:
        self._generation, content = self._store.read()
        document = msgspec.json.decode(content, type=Document)
        endpoints = endpoints_of(document.routes)
        try:
            self._shared_ids = self._shared.counters.ids(names_in(document.routes))
        except KeyError:  # newer routes were published since, twice, and their names have the ids now
            self._build()
            return
        heads = {e: _head(e, secret) for e, secret in zip(endpoints, document.credentials, strict=True)}
        kept = {
            url: self._connections.get(url) or Pool(address_of(url), self.resolver)
            for url in {e.url for e in endpoints}
        }
        for url in self._connections.keys() - kept.keys():
            self._connections[url].close()
        self._connections = kept
        models = {}
        for model in document.routes.models:
            registered = RegisteredModel(self._model(model, heads), model, self._limit(model))
            models.update(dict.fromkeys((model.name, *model.aliases), registered))
        self._document, self._models = document, models
        self._assume_health()

    def _assume_health(self) -> None:
        """Take endpoints for healthy where no health check is going to tell, or where the settings say so."""
        health = self._shared.health
        for _, shared_id, model in self.checks():
            if not model.health_check.interval_s:
                health.set_healthy(shared_id, healthy=True)  # also one that failed its checks while there were any
            elif self._assume_healthy:
                health.assume_healthy(shared_id)

    def _model(self, model: route_schema.Model, heads: Mapping[route_schema.Endpoint, str]) -> Model:
        if model.protocol == "simulated":
            versions = tuple(version.name for version in model.versions)
            return SimulatedModel(model.name, self._simulated_latency_s, self._simulated_token_s, versions)
        model_id = self._shared_ids[counted_as(model)]
        budget = self._shared.budgets.of(model_id, model.retry_budget)
        pools = []
        for version in model.versions:
            asks = ORCA_REQUEST if model.balancing == "least_load" else ""
            endpoints = [self._endpoint(e, heads[e] + asks, model_id) for e in version.endpoints]
            pools.append(EndpointPool(model, version, endpoints, budget, self._shared))
        return RemoteModel(model, pools, budget, self._shared.metrics)

    def _endpoint(self, endpoint: route_schema.Endpoint, head: str, model_id: int) -> Endpoint:
        url = endpoint.url
        shared_id = self._shared_ids[url]
        return Endpoint(url, shared_id, pair(shared_id, model_id), self._connections[url], head, urlsplit(url).path)

    def _limit(self, model: route_schema.Model) -> ModelLimit | None:
        if model.max_concurrency is None:
            return None
        return self._shared.limits.of(self._shared_ids[counted_as(model)], model.max_concurrency)


def address_of(url: str) -> Address:
    """Returns the address of the server of a URL."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return Address(parts.hostname or "", parts.port or (443 if tls else 80), tls)


def _head(endpoint: route_schema.Endpoint, credential: str | None) -> str:
    lines = f"host: {urlsplit(endpoint.url).netloc}\r\n"
    if credential is not None:
        lines += f"authorization: Bearer {credential}\r\n"
    return lines
