"""The router's own part of the OpenAI-compatible protocol: the list of models, `/v1/models`."""

import time

import falcon
import msgspec

from app.api.dispatch import Dispatcher
from app.api.exchange import ENVIRON_KEY
from app.errors import ModelNotFound
from app.protocols.adapters import served_elsewhere, speaks
from app.protocols.openai import ADAPTER


class ModelsResource:
    """GET /v1/models and /v1/models/{name}: the names that the caller may use, aliases included."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._created = int(time.time())

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        models = self._dispatcher.usable(req.env[ENVIRON_KEY])
        names = [name for name, model in models if speaks(model.route.protocol, ADAPTER)]
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode({"object": "list", "data": [self._card(name) for name in names]})

    on_head = on_get

    def on_get_one(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        protocol = self._dispatcher.find(req.env[ENVIRON_KEY], name).route.protocol
        if not speaks(protocol, ADAPTER):
            raise ModelNotFound(served_elsewhere(name, protocol))
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode(self._card(name))

    on_head_one = on_get_one

    def _card(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "inference-router"}
