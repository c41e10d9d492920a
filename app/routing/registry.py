"""The models that are served now, by name: what is published (publication.py), made into models that can be called.

Every worker makes its own, when it finds before a request that a new generation was published. A request keeps the
models it began with, so nothing is dropped by a change.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from app.admission.model_limit import ModelLimit
from app.config import route_schema as routes
from app.config.routes_source import Document, counted_as, endpoints_of, names_in
from app.errors import ModelNotFound
from app.observability.metrics import EndpointState
from app.protocols import Model
from app.routing.endpoint_pool import Endpoint, SharedRouting, Version
from app.routing.remote_model import RemoteModel
from app.routing.route_store import RouteStore
from app.simulated.model import SimulatedModel
from app.upstream.connection import Address
from app.upstream.pool import Pool


class RegisteredModel(NamedTuple):
    """A model, its route, and its own limit if it has one."""

    model: Model
    route: routes.Model
    limit: ModelLimit | None = None


class ModelRegistry:
    """All models, in one worker."""

    def __init__(
        self,
        publication: RouteStore,
        shared: SharedRouting,
        retry_after: Callable[[], int],
        *,
        simulated_latency_s: float,
        simulated_token_s: float,
    ) -> None:
        self._simulated = simulated_latency_s, simulated_token_s
        self._publication = publication
        self._shared = shared
        self._retry_after = retry_after
        self._generation = 0
        self._document = Document(routes.Routes(models=()))
        self._served: dict[str, RegisteredModel] = {}
        self._pools: dict[str, Pool] = {}
        self._places: Mapping[str, int] = {}

    def find(self, name: str | None) -> RegisteredModel:
        """The model of this name or alias; without a name, the default one. Raises ModelNotFound."""
        served = self._now()
        try:
            return served[self._document.routes.default.name if name is None else name]
        except KeyError:
            names = ", ".join(model.name for model in self._document.routes.models)
            raise ModelNotFound(f"there is no model {str(name)[:100]!r}; there is {names}") from None

    def names(self) -> list[str]:
        """Names and aliases of all models."""
        return list(self._now())

    def unusable(self) -> str | None:
        """Why no request at all can be served, or None when some can."""
        reasons = [served.model.unusable() for served in self._now().values()]
        return "; ".join(sorted({str(reason) for reason in reasons})) if all(reasons) else None

    def checks(self) -> Iterable[tuple[routes.Endpoint, int, routes.Model]]:
        """Every endpoint once, its place, and the model that says how it is checked."""
        self._now()
        seen = set()
        for model in self._document.routes.models:
            for version in model.versions:
                for endpoint in version.endpoints:
                    if endpoint.url not in seen:
                        seen.add(endpoint.url)
                        yield endpoint, self._places[endpoint.url], model

    def endpoint_states(self) -> Iterable[EndpointState]:
        """What is told of every endpoint."""
        for endpoint, place, _ in self.checks():
            yield EndpointState(endpoint.url, self._shared.usage.total(place), self._shared.states.is_up(place))

    def prune(self) -> None:
        """Close connections that have been idle for too long."""
        for pool in self._pools.values():
            pool.prune()

    def _now(self) -> dict[str, RegisteredModel]:
        if self._generation != self._publication.generation:
            self._build()
        return self._served

    def _build(self) -> None:
        self._generation, content = self._publication.read()
        document = msgspec.json.decode(content, type=Document)
        endpoints, models = endpoints_of(document.routes), document.routes.models
        try:
            self._places = self._shared.usage.places(names_in(document.routes))
        except KeyError:  # newer routes were published since, twice: their names have the places now
            self._build()
            return
        heads = {e: _head(e, secret) for e, secret in zip(endpoints, document.credentials, strict=True)}
        pools = {url: self._pools.get(url) or Pool(address_of(url)) for url in {e.url for e in endpoints}}
        for url in self._pools.keys() - pools.keys():
            self._pools[url].close()
        self._pools = pools
        served = {}
        for model in models:
            entry = RegisteredModel(self._model(model, heads), model, self._limit(model))
            served.update(dict.fromkeys((model.name, *model.aliases), entry))
        self._document, self._served = document, served

    def _model(self, model: routes.Model, heads: Mapping[routes.Endpoint, str]) -> Model:
        if model.protocol == "simulated":
            return SimulatedModel(
                model.name,
                *self._simulated,
                tuple(version.name for version in model.versions),
            )
        versions = [
            Version(
                model,
                version,
                [
                    Endpoint(e.url, self._places[e.url], self._pools[e.url], heads[e], urlsplit(e.url).path)
                    for e in version.endpoints
                ],
                self._shared,
            )
            for version in model.versions
        ]
        budget = self._shared.budgets.of(self._places[counted_as(model)], model.retry_budget)
        return RemoteModel(model, versions, budget, self._shared.metrics)

    def _limit(self, model: routes.Model) -> ModelLimit | None:
        if model.max_concurrency is None:
            return None
        place = self._places[counted_as(model)]
        return ModelLimit(self._shared.table, self._shared.usage, place, model.max_concurrency, self._retry_after)


def address_of(url: str) -> Address:
    """Where the server of a URL listens."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return Address(parts.hostname or "", parts.port or (443 if tls else 80), tls)


def _head(endpoint: routes.Endpoint, credential: str | None) -> str:
    lines = f"host: {urlsplit(endpoint.url).netloc}\r\n"
    if credential is not None:
        lines += f"authorization: Bearer {credential}\r\n"
    return lines
