"""Open Inference Protocol v2 (REST): the server's and the models' state, and inference with JSON or binary tensors.

Health and readiness are answered by the router, from what it knows of the endpoints. Metadata and inference are the
model servers': they pass through untouched, and take a permit.
"""

import re
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple
from urllib.parse import quote

import falcon
import msgspec

from app.api.dispatch import PIN, Dispatcher, headers_for, key_for
from app.api.exchange import ENVIRON_KEY
from app.config.route_schema import WORD
from app.errors import Draining, InvalidRequest, ModelNotFound, NoEndpoint, ProtocolMismatch
from app.protocols import Call
from app.routing.registry import ModelRegistry, RegisteredModel
from app.shared_memory.drain import Drain

PREFIX = "/v2/models"
_SPOKEN = ("v2", "simulated")
_VERSION = re.compile(WORD)
_JSON_LENGTH = "Inference-Header-Content-Length"


class _Asked(msgspec.Struct):
    """What the router looks at in a request."""

    inputs: list[msgspec.Raw]


class _Target(NamedTuple):
    """What a path names."""

    name: str
    version: str = ""
    action: str = ""


_decode = msgspec.json.Decoder(_Asked).decode


class ServerResource:
    """GET /v2, /v2/health/live and /v2/health/ready."""

    def __init__(self, catalogue: ModelRegistry, drain: Drain) -> None:
        self._catalogue = catalogue
        self._drain = drain
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
        if self._drain.begun:
            raise Draining("the server is shutting down")
        if (reason := self._catalogue.unusable()) is not None:
            raise NoEndpoint(reason)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"ready":true}'

    on_head_ready = on_get_ready


class ModelResource:
    """/v2/models/{name}[/versions/{version}][/ready or /infer]."""

    def __init__(self, door: Dispatcher) -> None:
        self._door = door

    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str, version: str = "") -> None:
        req.env[ENVIRON_KEY].route = PREFIX + "/{name}"
        served = self._find(req, name, version)
        self._door.relay(req, resp, served, _call(req, served, _Target(name, version)))

    def on_get_ready(self, req: falcon.Request, resp: falcon.Response, name: str, version: str = "") -> None:
        served = self._find(req, name, version)
        if self._door.drain.begun:
            raise Draining("the server is shutting down")
        if (reason := served.model.unusable(version)) is not None:
            raise NoEndpoint(reason)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode({"name": name, "ready": True})

    on_head_ready = on_get_ready

    def on_post_infer(self, req: falcon.Request, resp: falcon.Response, name: str, version: str = "") -> None:
        body = self._door.body(req, PREFIX + "/{name}/infer")
        served = self._find(req, name, version)
        call = _call(req, served, _Target(name, version, "/infer"), body, beginning=_check(req, body))
        self._door.relay(req, resp, served, call)

    def _find(self, req: falcon.Request, name: str, version: str) -> RegisteredModel:
        if version and not _VERSION.fullmatch(version):  # it is going to be a part of a path
            raise ModelNotFound(f"{name} has no such version; a version is up to 63 of A-Z a-z 0-9 . _ -")
        served = self._door.find(req, name)
        if served.route.protocol not in _SPOKEN:
            raise ProtocolMismatch(f"{name} is served under /v1, by the OpenAI-compatible endpoints")
        return served


def _call(
    req: falcon.Request, served: RegisteredModel, target: _Target, body: bytes = b"", *, beginning: bytes = b""
) -> Call:
    query = f"?{req.query_string}" if req.query_string else ""
    rename = partial(_renamed, target, query, body)
    return Call(
        req.method,
        rename(target.name, None)[0],
        headers_for(req, served),
        body,
        key=key_for(req, served, beginning),
        version=target.version or req.get_header(PIN) or "",
        model=target.name,
        rename=rename,
    )


def _check(req: falcon.Request, body: bytes) -> bytes:
    """The inputs as they were written, for a balancing policy that goes by them. Raises InvalidRequest."""
    if (req.get_header("Content-Encoding") or "identity").lower() != "identity":
        return b""  # compressed: the model server's to read
    head = body
    given: Any = req.get_header(_JSON_LENGTH)
    if given is not None:
        if not re.fullmatch(r"\d{1,10}", given, re.ASCII) or int(given) > len(body):
            raise InvalidRequest(f"{_JSON_LENGTH}: must be a number, at most the {len(body)} bytes of the body")
        head = body[: int(given)]
    try:
        asked = _decode(head)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not an inference request: {error}") from error
    return b",".join(bytes(part) for part in asked.inputs)


def _renamed(target: _Target, query: str, body: bytes, model: str, version: str | None) -> tuple[str, bytes]:
    version = target.version if version is None else version
    of_version = f"/versions/{quote(version, safe='')}" if version else ""
    return f"{PREFIX}/{quote(model, safe='')}{of_version}{target.action}{query}", body
