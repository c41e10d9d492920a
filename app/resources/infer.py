"""POST /infer: one prompt to the model."""

import time

import falcon
import msgspec
from msgspec import UNSET, UnsetType

from app.backends import Inference, Model
from app.config import Settings
from app.drain import Drain
from app.errors import Draining, InvalidRequest
from app.exchange import ENVIRON_KEY, Exchange
from app.limiter import Limiter
from app.resources.body import parse_object, read_body

ROUTE = "/infer"


class Answer(msgspec.Struct, rename="camel"):
    """The answer's members, in order; `routerPod` is left out where the pod has no name."""

    model_ref: str
    prompt: str
    router_pod: str | UnsetType
    kv_endpoints: list[str]
    processing_ms: int


class InferResource:
    """Reads, then asks for a permit, then asks the model: bad input never takes a permit."""

    def __init__(self, settings: Settings, limiter: Limiter, model: Model, drain: Drain) -> None:
        self._limiter = limiter
        self._model = model
        self._drain = drain
        self._max_body_bytes = settings.max_body_bytes
        self._router_pod = settings.pod_name or UNSET
        self._kv_endpoints = settings.kv_endpoints_masked

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        exchange: Exchange = req.env[ENVIRON_KEY]
        exchange.route, exchange.model = ROUTE, self._model.ref
        inference = parse_inference(read_body(req, self._max_body_bytes))
        if self._drain.begun:
            raise Draining("the server is shutting down; send the request to another one")
        exchange.admit(self._limiter)
        began = time.monotonic()
        try:
            self._model.infer(inference)
        finally:
            exchange.model_s = time.monotonic() - began
        resp.data = msgspec.json.encode(
            Answer(
                model_ref=self._model.ref,
                prompt=inference.prompt,
                router_pod=self._router_pod,
                kv_endpoints=self._kv_endpoints,
                processing_ms=round(exchange.model_s * 1000),
            )
        )


def parse_inference(body: bytes) -> Inference:
    """`{"prompt": "…", …}`: the prompt, and the other members for the model. Raises InvalidRequest."""
    members = parse_object(body)
    prompt = members.pop("prompt", None)
    if not isinstance(prompt, str):
        found = "it is missing" if prompt is None else f"it is of type {type(prompt).__name__}"
        raise InvalidRequest(f"`prompt` must be a string - at `$.prompt`: {found}")
    return Inference(prompt, members)
