"""GET /healthz and GET /readyz. Neither takes a permit, and neither looks at the load."""

from http import HTTPStatus

import falcon

from app.api import error_responses as problems
from app.errors import Draining
from app.routing.registry import ModelRegistry
from app.shared_memory.drain import Drain


class HealthzResource:
    """The process lives: 200, whatever the load or the state of any dependency."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"alive"}'

    on_head = on_get


class ReadyzResource:
    """Requests can be served: 200, else 503 with the reason. Never 503 because the cap is reached."""

    def __init__(self, catalogue: ModelRegistry, drain: Drain) -> None:
        self._catalogue = catalogue
        self._drain = drain

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        if self._drain.begun:
            problems.answer(req, resp, HTTPStatus.SERVICE_UNAVAILABLE, Draining.code, "the server is shutting down")
        elif (reason := self._catalogue.unusable()) is not None:
            problems.answer(req, resp, HTTPStatus.SERVICE_UNAVAILABLE, "model_unusable", reason)
        else:
            resp.content_type = falcon.MEDIA_JSON
            resp.data = b'{"status":"ready"}'

    on_head = on_get
