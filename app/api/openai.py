"""The OpenAI-compatible endpoints: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/models`."""

import time
from functools import partial

import falcon
import msgspec
from msgspec import UNSET, UnsetType

from app.api.dispatch import PIN, Dispatcher, headers_for, key_for
from app.errors import InvalidRequest, ModelNotFound, ProtocolMismatch
from app.protocols import Call
from app.routing.registry import ModelRegistry

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_SPOKEN = ("openai", "simulated")


class _Asked(msgspec.Struct):
    """What the router needs to know of a request; the rest is the model server's."""

    model: str | None = None
    messages: msgspec.Raw | UnsetType = UNSET
    prompt: msgspec.Raw | UnsetType = UNSET
    input: msgspec.Raw | UnsetType = UNSET

    def beginning(self) -> bytes:
        """The prompt as it was written, for a balancing policy that goes by it."""
        for part in (self.messages, self.prompt, self.input):
            if not isinstance(part, UnsetType):
                return bytes(part)
        return b""


_decode = msgspec.json.Decoder(_Asked).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class GenerationResource:
    """One of ROUTES: the body's `model` picks the route, everything else passes untouched in both directions."""

    def __init__(self, door: Dispatcher, path: str) -> None:
        self._door = door
        self._path = path

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        body = self._door.body(req, self._path)
        asked = _parse(body)
        served = self._door.find(req, asked.model)
        if served.route.protocol not in _SPOKEN:
            raise ProtocolMismatch(f"{served.route.name} is served under /v2, by Open Inference Protocol v2")
        path = f"{self._path}?{req.query_string}" if req.query_string else self._path
        call = Call(
            "POST",
            path,
            headers_for(req, served),
            body,
            key=key_for(req, served, asked.beginning()),
            version=req.get_header(PIN) or "",
            model=asked.model or "",
            rename=partial(_renamed, path, body),
        )
        self._door.relay(req, resp, served, call)


class ModelsResource:
    """GET /v1/models and /v1/models/{name}: what can be asked for, aliases included."""

    def __init__(self, catalogue: ModelRegistry) -> None:
        self._catalogue = catalogue
        self._created = int(time.time())

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        names = [name for name in self._catalogue.names() if self._catalogue.find(name).route.protocol in _SPOKEN]
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode({"object": "list", "data": [self._card(name) for name in names]})

    on_head = on_get

    def on_get_one(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        if self._catalogue.find(name).route.protocol not in _SPOKEN:
            raise ModelNotFound(f"{name} is served under /v2, by Open Inference Protocol v2")
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode(self._card(name))

    on_head_one = on_get_one

    def _card(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "inference-router"}


def _parse(body: bytes) -> _Asked:
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object that can be read: {error}") from error


def _renamed(path: str, body: bytes, model: str, _version: str | None) -> tuple[str, bytes]:
    """The same request of another model; the other members keep their bytes. The protocol knows no versions."""
    try:
        members = _decode_members(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidRequest(f"the body is not a JSON object that can be read: {error}") from error
    members["model"] = msgspec.Raw(msgspec.json.encode(model))
    return path, msgspec.json.encode(members)
