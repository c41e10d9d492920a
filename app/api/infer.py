"""POST /infer: one prompt to the model."""

import time
from functools import partial
from typing import Any

import falcon
import msgspec
from msgspec import UNSET, UnsetType

from app.api.body import parse_object
from app.api.dispatch import PIN, Dispatcher, headers_for, key_for
from app.config.settings import Settings
from app.errors import InvalidRequest
from app.protocols import Inference

ROUTE = "/infer"
_JSON_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


class Answer(msgspec.Struct, rename="camel"):
    """The answer's members, in order; left out are `routerPod` of a nameless pod and `output` of a simulated model."""

    model_ref: str
    prompt: str
    router_pod: str | UnsetType
    kv_endpoints: list[str]
    processing_ms: int
    output: Any | UnsetType = UNSET


class InferResource:
    """Reads, then asks for a permit, then asks the model: bad input never takes a permit."""

    def __init__(self, settings: Settings, door: Dispatcher) -> None:
        self._door = door
        self._router_pod = settings.pod_name or UNSET
        self._kv_endpoints = settings.kv_endpoints_masked

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        asked = parse_inference(self._door.body(req, ROUTE))
        served = self._door.find(req, asked.model)
        inference = asked._replace(
            headers=partial(headers_for, req, served),
            key=key_for(req, served, asked.prompt.encode()),
            version=req.get_header(PIN) or "",
        )
        exchange = self._door.admit(req, served)
        began = time.monotonic()
        try:
            output = served.model.infer(inference)
        finally:
            exchange.model_s = time.monotonic() - began
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode(
            Answer(
                model_ref=served.route.name,
                prompt=asked.prompt,
                router_pod=self._router_pod,
                kv_endpoints=self._kv_endpoints,
                processing_ms=round(exchange.model_s * 1000),
                output=output,
            )
        )


def parse_inference(body: bytes) -> Inference:
    """`{"prompt": "…", "model": "…", …}`: what the router looks at, and the rest. Raises InvalidRequest."""
    members = parse_object(body)
    return Inference(_text(members, "prompt"), members, model=_text(members, "model", required=False))


def _text(members: dict[str, Any], name: str, required: bool = True) -> Any:
    """A member that must be a string, taken out of `members`; None if it is missing and need not be there."""
    value = members.pop(name, UNSET)
    if isinstance(value, str):
        return value
    if value in (UNSET, None) and not required:
        return None
    found = "it is missing" if value is UNSET else f"it is of type {_JSON_TYPES[type(value)]}"
    raise InvalidRequest(f"`{name}` must be a string - at `$.{name}`: {found}")
