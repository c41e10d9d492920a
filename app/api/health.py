"""Liveness and readiness. Neither takes a permit, and neither looks at the load."""

from collections.abc import Callable

import falcon

from app.errors import Draining, ModelUnusable, NoEndpoint
from app.routing.registry import ModelRegistry
from app.shared_memory.drain import Drain


def check_draining(drain: Drain) -> None:
    """Raises Draining if the server is shutting down."""
    if drain.begun:
        raise Draining("the server is shutting down; send the request to another one")


def check_readiness(
    drain: Drain, unusable: Callable[[], str | None], error: type[ModelUnusable | NoEndpoint] = ModelUnusable
) -> None:
    """Raises Draining, or `error` with the reason that `unusable` returns. A cap that is reached is no reason."""
    check_draining(drain)
    reason = unusable()
    if reason is not None:
        raise error(reason)


class HealthzResource:
    """The process lives: 200, whatever the load or the state of any dependency."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"alive"}'

    on_head = on_get


class ReadyzResource:
    """Requests can be served: 200, else 503 with the reason."""

    def __init__(self, registry: ModelRegistry, drain: Drain) -> None:
        self._registry = registry
        self._drain = drain

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        check_readiness(self._drain, self._registry.unusable)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"ready"}'

    on_head = on_get
