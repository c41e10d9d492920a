"""Liveness and readiness. Neither takes a permit, and neither looks at the load."""

from collections.abc import Callable
from typing import NamedTuple

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


class Readiness(NamedTuple):
    """Whether requests can be served at all: what `/readyz` and `/v2/health/ready` say."""

    registry: ModelRegistry
    drain: Drain
    told_at: str | None = None
    """The reasons, which name models, are told at this port only; None: everywhere."""

    def check(self, req: falcon.Request, error: type[ModelUnusable | NoEndpoint] = ModelUnusable) -> None:
        """Raises as `check_readiness` does."""
        tells = self.told_at in (None, req.env["SERVER_PORT"])
        check_readiness(self.drain, self.registry.unusable if tells else self._unusable, error)

    def _unusable(self) -> str | None:
        return None if self.registry.unusable() is None else "no model can be served now"


class HealthzResource:
    """The process lives: 200, whatever the load or the state of any dependency."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"alive"}'

    on_head = on_get


class ReadyzResource:
    """Requests can be served: 200, else 503 with the reason."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._readiness.check(req)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"ready"}'

    on_head = on_get
