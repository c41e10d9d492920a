"""The router's own part of Open Inference Protocol v2: the state of the server and the readiness of a model.

The router responds itself, from what it knows of the endpoints.
"""

from functools import partial
from importlib import metadata

import falcon
import msgspec

from app.api.dispatch import Dispatcher
from app.api.exchange import ENVIRON_KEY
from app.api.health import Readiness, check_readiness
from app.errors import NoEndpoint
from app.protocols.v2 import ADAPTER, check_version


class ServerResource:
    """GET /v2, /v2/health/live and /v2/health/ready."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._about = msgspec.json.encode(
            {
                "name": "inference-router",
                "version": metadata.version("inference-router"),
                "extensions": ["binary_tensor_data"],
            }
        )

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._about

    on_head = on_get

    def on_get_live(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"live":true}'

    on_head_live = on_get_live

    def on_get_ready(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._readiness.check(req, NoEndpoint)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"ready":true}'

    on_head_ready = on_get_ready


class ModelReadyResource:
    """GET /v2/models/{name}[/versions/{version}]/ready."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str, version: str = "") -> None:
        check_version(name, version)
        model = self._dispatcher.resolve(req.env[ENVIRON_KEY], ADAPTER, name).model
        check_readiness(self._dispatcher.drain, partial(model.unusable, version), NoEndpoint)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode({"name": name, "ready": True})

    on_head = on_get
