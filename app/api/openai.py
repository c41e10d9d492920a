"""The router's own part of the OpenAI-compatible protocol: the list of models, `/v1/models`."""

import time

import falcon
import msgspec

from app.errors import ModelNotFound
from app.protocols.adapters import served_elsewhere, speaks
from app.protocols.openai import ADAPTER
from app.routing.registry import ModelRegistry


class ModelsResource:
    """GET /v1/models and /v1/models/{name}: the names that a request may use, aliases included."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._created = int(time.time())

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        names = [name for name in self._registry.names() if speaks(self._protocol(name), ADAPTER)]
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode({"object": "list", "data": [self._card(name) for name in names]})

    on_head = on_get

    def on_get_one(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        protocol = self._protocol(name)
        if not speaks(protocol, ADAPTER):
            raise ModelNotFound(served_elsewhere(name, protocol))
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode(self._card(name))

    on_head_one = on_get_one

    def _protocol(self, name: str) -> str:
        return self._registry.find(name).route.protocol

    def _card(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "inference-router"}
