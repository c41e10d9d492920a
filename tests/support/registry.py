"""A registry of one model, which a test brings along, and the application over it."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Self
from wsgiref.types import WSGIApplication

from msgspec import Raw, UnsetType

from app.api.admin.live import LiveFeed
from app.api.application import create_app
from app.api.dispatch import Dispatcher
from app.bootstrap import Router, shared_state
from app.config import route_schema
from app.errors import ModelNotFound
from app.net.tls_files import TlsContext
from app.observability.endpoint_gauges import EndpointState
from app.observability.model_gauges import ModelState
from app.protocols.calls import Call, Inference, Model, Reply, RequestTrace
from app.routing.registered_model import RegisteredModel
from app.routing.registry import ModelRegistry


class TestModel:
    """A `Model` that a test derives its own from; it relays nothing."""

    __test__ = False  # not for pytest to collect
    name = "test"

    def under(self, deadline: float, trace: RequestTrace | None) -> Self:
        """See Model."""
        return self

    def infer(self, request: Inference) -> Raw | UnsetType:
        """See Model."""
        raise NotImplementedError

    def relay(self, call: Call) -> Reply:
        """See Model."""
        raise NotImplementedError

    def unusable(self, version: str = "") -> str | None:
        """See Model."""
        return None


class OneModel(ModelRegistry):
    """Serves this model, to requests that name it or none."""

    def __init__(self, model: Model) -> None:
        self._only = model
        self._route = route_schema.Model(name=model.name, protocol="simulated", versions=(route_schema.Version(),))

    def find(self, name: str | None) -> RegisteredModel:
        """See ModelRegistry."""
        if name not in (None, self._only.name):
            raise ModelNotFound(f"there is no model {name!r}")
        return RegisteredModel(self._only, self._route)

    def renewed(self, model: RegisteredModel) -> RegisteredModel:
        """See ModelRegistry."""
        return model

    def waiting(self) -> Iterable[tuple[str, int]]:
        """See ModelRegistry."""
        return ()

    def found(self) -> Mapping[str, tuple[str, ...]]:
        """See ModelRegistry."""
        return {}

    def names(self) -> list[str]:
        """See ModelRegistry."""
        return [self._only.name]

    def tls_contexts(self) -> list[TlsContext]:
        """See ModelRegistry."""
        return []

    def listed_paths(self) -> frozenset[str]:
        """See ModelRegistry."""
        return frozenset()

    def unusable(self) -> str | None:
        """See ModelRegistry."""
        return self._only.unusable()

    def model_states(self, cap: int) -> Iterable[ModelState]:
        """See ModelRegistry."""
        return ()

    def endpoint_states(self) -> Iterable[EndpointState]:
        """See ModelRegistry."""
        return ()


def application_over(router: Router, registry: ModelRegistry) -> WSGIApplication:
    """Returns the router's application, over this registry in place of its own."""
    read_state = partial(shared_state, router.limiter, router.slots, router.metric_files, registry, router.auth)
    settings = router.settings
    timeout_s = settings.queue_timeout_ms / 1000
    dispatcher = Dispatcher(
        registry,
        router.limiter,
        router.drain,
        settings.max_body_bytes,
        timeout_s,
        token_metrics=router.metrics.token_metrics,
    )
    live = LiveFeed(router.metrics, read_state, router.live.facts, router.models.endpoints.all)
    authenticator = router.auth.authenticator
    return create_app(settings, dispatcher, router.metrics, read_state, None, router.admin, live, authenticator)
