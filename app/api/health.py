"""Liveness and readiness. Neither takes a permit, and neither looks at the load."""

from collections.abc import Callable

import falcon

from app.errors import Draining, ModelUnusable, NoEndpoint
from app.routing.registry import ModelRegistry
from app.shared_memory.drain import Drain


def readiness(
    drain: Drain,
    unusable: Callable[[], str | None] | None = None,
    error: type[ModelUnusable | NoEndpoint] = ModelUnusable,
) -> Draining | ModelUnusable | NoEndpoint | None:
    """Returns why no request can be served now, or None when they can. A cap that is reached is no reason.

    `unusable` returns what is wrong with the models; without it, only the shutdown counts.
    """
    if drain.begun:
        return Draining("the server is shutting down; send the request to another one")
    reason = None if unusable is None else unusable()
    return None if reason is None else error(reason)


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
        if (error := readiness(self._drain, self._registry.unusable)) is not None:
            raise error
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"ready"}'

    on_head = on_get
