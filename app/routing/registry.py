"""The model registry: what is published (route_store.py), made into models that can serve requests.

Every worker has its own, and rebuilds it when it finds before a request that a new generation was published. A request
keeps the model that it began with, so no request is lost by a change.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from app.admission.model_limit import ModelLimit
from app.config import route_schema
from app.config.discovered import Source, expanded, source_of, sources_in
from app.config.routes_source import Document, counted_as, endpoints_of, names_in, waiting_as
from app.errors import ModelNotFound
from app.net.tls_files import TlsContext
from app.observability.endpoint_gauges import EndpointState
from app.observability.model_gauges import ModelState
from app.routing.back_off import pair
from app.routing.created_responses import CreatedResponses, response_not_found
from app.routing.endpoint import Endpoint, SharedRouting
from app.routing.endpoint_connections import pools_of, tls_contexts
from app.routing.endpoint_heads import EndpointHeads
from app.routing.endpoint_pool import EndpointPool
from app.routing.load_formats import ORCA_REQUEST
from app.routing.load_reports import stale_ms
from app.routing.registered_model import RegisteredModel, WaitRule
from app.routing.remote_model import RemoteModel
from app.routing.route_store import RouteStore, cursor_of
from app.shared_memory.table import name_hash
from app.simulated.model import SimulatedModel
from app.upstream.pool import Pool
from app.upstream.resolver import Resolver


class ModelRegistry:
    """All models, in one worker."""

    def __init__(  # noqa: PLR0913  # all that models are made of
        self,
        store: RouteStore,
        shared: SharedRouting,
        responses: CreatedResponses,
        heads: EndpointHeads,
        *,
        simulated_latency_s: float,
        simulated_token_s: float,
        assume_healthy: bool,
    ) -> None:
        self.resolver = Resolver()
        """The names of all endpoints."""
        self._store = store
        self._shared = shared
        self._heads = heads
        self.responses = responses
        """Which endpoint created which response."""
        self._simulated_latency_s = simulated_latency_s
        self._simulated_token_s = simulated_token_s
        self._assume_healthy = assume_healthy
        self._generation = 0
        self._cursor = cursor_of(shared.table)
        self._built_of = 0
        """What the cursor was when they were built."""
        self._document = Document(route_schema.Routes(models=()))
        self._models: dict[str, RegisteredModel] = {}
        self._listed_paths: frozenset[str] = frozenset()
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

    def fallbacks(self, route: route_schema.Model) -> list[RegisteredModel]:
        """Returns the models that may serve a request when the model of this route fails, in order.

        One that newer routes no longer have, or have with another protocol, is left out.
        """
        found = (self._models.get(name) for name in route.fallback)
        return [model for model in found if model is not None and model.route.protocol == route.protocol]

    @property
    def routes(self) -> route_schema.Routes:
        """Those that are current, with the endpoints that discovery has found."""
        self._current()
        return self._document.routes

    @property
    def generation(self) -> int:
        """That of the routes which are published."""
        return self._store.generation

    def renewed(self, model: RegisteredModel) -> RegisteredModel:
        """Returns the model as it is now; the same if nothing was published since, or if it is gone by its name."""
        if self._cursor[0] == model.built_of:
            return model
        now = self._current().get(model.route.name, model)
        return now if now.route.protocol == model.route.protocol else model

    def sources(self) -> Mapping[str, Source]:
        """Returns where endpoints are to be found, by their keys."""
        return sources_in(self.routes)

    def found(self) -> Mapping[str, tuple[str, ...]]:
        """Returns the URLs that are current of each source, by its key."""
        self._current()
        return self._document.found

    def shared_id(self, url: str) -> int | None:
        """Returns the id of an endpoint, None if it is served no more."""
        self._current()
        return self._shared_ids.get(url)

    def waiting(self) -> Iterable[tuple[str, int]]:
        """Yields the models whose requests may wait for an endpoint, and how many do, over all workers."""
        for model in self.routes.models:
            if model.no_endpoint_wait_s:
                yield model.name, self._shared.counters.total(self._shared_ids[waiting_as(model)])

    def creator_of(self, response_id: str, tenant: str) -> tuple[str, int]:
        """Returns the model that created a response, and the hash of its endpoint.

        Raises ResponseNotFound, also for a response of another tenant: nobody learns that there is one.
        """
        creator = self.responses.find(response_id)
        if creator is not None and creator.tenant == name_hash(tenant):
            self._current()
            for model in self._document.routes.models:
                if name_hash(model.name) == creator.model:
                    return model.name, creator.endpoint
        raise response_not_found(response_id)

    def names(self) -> list[str]:
        """Returns names and aliases of all models."""
        return list(self._current())

    def listed_paths(self) -> frozenset[str]:
        """Returns the further paths that the routes of the models list."""
        self._current()
        return self._listed_paths

    def unusable(self) -> str | None:
        """Returns why no request at all can be served, or None if some can."""
        reasons = [registered.model.unusable() for registered in self._current().values()]
        return "; ".join(sorted({str(reason) for reason in reasons})) if all(reasons) else None

    def checks(self) -> Iterable[tuple[route_schema.Endpoint, int, route_schema.Model]]:
        """Yields every endpoint once, with its id and the model that says how it is checked."""
        return self._endpoints(lambda _: True)

    def reporting(self) -> Iterable[tuple[route_schema.Endpoint, int, route_schema.Model]]:
        """Yields every endpoint of a `least_load` model once, with its id and the model that says how it reports."""
        return self._endpoints(lambda model: model.balancing == "least_load")

    def _endpoints(
        self, wanted: Callable[[route_schema.Model], bool]
    ) -> Iterator[tuple[route_schema.Endpoint, int, route_schema.Model]]:
        seen = set()
        for model in filter(wanted, self.routes.models):
            for endpoint in chain.from_iterable(version.endpoints for version in model.versions):
                if endpoint.url not in seen:
                    seen.add(endpoint.url)
                    yield endpoint, self._shared_ids[endpoint.url], model

    def endpoint_states(self) -> Iterable[EndpointState]:
        """Yields what the gauges say of every endpoint."""
        stale = {
            endpoint.url: self._shared.loads.is_stale(shared_id, stale_ms(model))
            for endpoint, shared_id, model in self.reporting()
        }
        for endpoint, shared_id, _ in self.checks():
            inflight, health = self._shared.counters.total(shared_id), self._shared.health
            up, draining = health.is_up(shared_id), health.is_draining(shared_id)
            yield EndpointState(endpoint.url, inflight, up, stale.get(endpoint.url), draining)

    def model_ids(self) -> dict[str, int]:
        """Returns the ids of all models, by name."""
        return {model.name: self._shared_ids[counted_as(model)] for model in self.routes.models}

    def model_states(self, cap: int) -> Iterable[ModelState]:
        """Yields what the gauges say of every model. `cap` is the number of permits that all models share."""
        counters, traffic = self._shared.counters, self._shared.traffic
        registered = self._current()
        for model in self._document.routes.models:
            shared_id = self._shared_ids[counted_as(model)]
            queued = traffic.waiting(shared_id)
            # The two are not read at one moment, and a request is there just before it waits or is rejected.
            inflight = min(max(0, counters.total(shared_id) - queued), cap)
            if model.no_endpoint_wait_s:
                queued += counters.total(self._shared_ids[waiting_as(model)])  # they make it scale from zero
            yield ModelState(
                model.name,
                inflight,
                queued,
                min(cap, model.max_concurrency or cap),
                traffic.rejections(shared_id),
                inflight + queued + traffic.excess_milli[shared_id] / 1000,
                registered[model.name].model.unusable() is None,
            )

    def tls_contexts(self) -> list[TlsContext]:
        """Returns the contexts of the endpoints' TLS that are made of files."""
        return tls_contexts(self._connections.values())

    def renew_credentials(self) -> list[str]:
        """Use the credentials that have changed since they were read. Returns where those are, in words."""
        self._current()
        changed, more_are_usable = self._heads.renew()
        if more_are_usable:
            self._build()
        return changed

    def prune(self) -> None:
        """Close connections that are too old or have been idle for too long."""
        for connections in self._connections.values():
            connections.prune()

    def _current(self) -> dict[str, RegisteredModel]:
        if self._cursor[0] != self._built_of:  # a request asks twice: a call for each comparison would cost more
            self._build()
        return self._models

    def _build(self) -> None:
        self._built_of = self._cursor[0]  # before the read: what is published between the two is built next time
        self._generation, content = self._store.read()
        document = expanded(msgspec.json.decode(content, type=Document))
        endpoints = endpoints_of(document.routes)
        try:
            self._shared_ids = self._shared.counters.ids(names_in(document.routes))
        except KeyError:  # newer routes were published since, twice, and their names have the ids now
            self._build()
            return
        self._heads.begin(document.routes)
        self._connections = pools_of(endpoints, self._connections, self.resolver)
        models = {}
        for model in document.routes.models:
            registered = self._registered(model, document.found)
            models.update(dict.fromkeys((model.name, *model.aliases), registered))
        self._document, self._models = document, models
        self._listed_paths = frozenset(path for model in document.routes.models for path in model.paths)
        self._assume_health()

    def _assume_health(self) -> None:
        """Take endpoints for healthy where no health check is going to tell, or where the settings say so."""
        health = self._shared.health
        for _, shared_id, model in self.checks():
            if not model.health_check.interval_s:
                health.set_healthy(shared_id, healthy=True)  # also one that failed its checks while there were any
            elif self._assume_healthy:
                health.assume_healthy(shared_id)

    def _registered(self, model: route_schema.Model, found: Mapping[str, tuple[str, ...]]) -> RegisteredModel:
        traffic = self._shared.traffic.of(self._shared_ids[counted_as(model)])
        if model.protocol == "simulated":
            versions = tuple(version.name for version in model.versions)
            times = self._simulated_latency_s, self._simulated_token_s
            simulated = SimulatedModel(model.name, *times, versions, model.paths)
            return RegisteredModel(simulated, model, self._limit(model), traffic, self._built_of)
        sources = [source.key for version in model.versions if (source := source_of(version))]
        # Usable without an endpoint only once discovery has said that there is none: what can't be asked is not known.
        scaled_to_zero = bool(model.no_endpoint_wait_s and sources) and all(key in found for key in sources)
        remote = self._remote_model(model, scaled_to_zero)
        rule = None
        if model.no_endpoint_wait_s:
            name = waiting_as(model)
            rule = WaitRule(remote.lacks_endpoints, self._shared_ids[name], name_hash(name), self._generation)
        return RegisteredModel(remote, model, self._limit(model), traffic, self._built_of, rule)

    def _remote_model(self, model: route_schema.Model, scaled_to_zero: bool) -> RemoteModel:
        model_id = self._shared_ids[counted_as(model)]
        budget = self._shared.budgets.of(model_id, model.retry_budget)
        asks = ORCA_REQUEST if model.balancing == "least_load" else ""
        pools, left_out = [], 0
        for version in model.versions:
            usable = self._heads.usable(version)
            left_out += len(version.endpoints) - len(usable)
            endpoints = [self._endpoint(endpoint, asks, model_id) for endpoint in usable]
            rest = replace(version, endpoints=usable)
            pools.append(EndpointPool(model, rest, endpoints, budget, self._shared, self._generation))
        return RemoteModel(model, pools, budget, self._shared.metrics, scaled_to_zero, left_out)

    def _endpoint(self, endpoint: route_schema.Endpoint, asks: str, model_id: int) -> Endpoint:
        url, head = endpoint.url, self._heads.head(endpoint) + asks
        shared_id = self._shared_ids[url]
        made = Endpoint(url, shared_id, pair(shared_id, model_id), self._connections[url], head, urlsplit(url).path)
        return self._heads.made(endpoint, asks, made)

    def _limit(self, model: route_schema.Model) -> ModelLimit | None:
        if model.max_concurrency is None:
            return None
        return self._shared.limits.of(self._shared_ids[counted_as(model)], model.max_concurrency)
