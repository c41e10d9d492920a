"""`POST /infer`, the router's own wire format: one prompt in, one output out, whatever the model server speaks."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from app.errors import InvalidRequest, UpstreamBroken, UpstreamErrorResponse
from app.net.http_fields import Headers
from app.protocols.interfaces import Call, ClientRequest, Inference, Model, Operation, ProtocolAdapter, Reply

ROUTE = "/infer"
_CONTENT_TYPE = ("content-type", "application/json")
_JSON_HEADERS = [_CONTENT_TYPE, ("accept", "application/json")]
_REPLACED = frozenset(("content-type", "accept", "accept-encoding"))
_MAX_DETAIL = 500
_JSON_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class InferResponse(msgspec.Struct, rename="camel"):
    """The response's members in order. A nameless pod has no `routerPod`, a simulated model no `output`."""

    model_ref: str
    prompt: str
    router_pod: str | UnsetType
    kv_endpoints: list[str]
    processing_ms: int
    output: Any | UnsetType = UNSET


class _Responder(NamedTuple):
    """What every response tells of this router."""

    router_pod: str | UnsetType
    kv_endpoints: list[str]

    def parse(self, request: ClientRequest) -> "_ParsedInference":
        return _ParsedInference(self, parse_inference(request.body))


class _ParsedInference(NamedTuple):
    """The `ParsedRequest` of /infer."""

    responder: _Responder
    inference: Inference
    version: str = ""

    @property
    def model(self) -> str | None:
        return self.inference.model

    def prompt(self) -> Sequence[bytes]:
        return (self.inference.prompt.encode(),)

    def send(self, model: Model, headers: Callable[[], Headers], key: bytes, version: str) -> Reply:
        began = time.monotonic()
        output = model.infer(self.inference._replace(headers=headers, key=key, version=version))
        response = InferResponse(
            model_ref=model.name,
            prompt=self.inference.prompt,
            router_pod=self.responder.router_pod,
            kv_endpoints=self.responder.kv_endpoints,
            processing_ms=round((time.monotonic() - began) * 1000),
            output=output,
        )
        body = msgspec.json.encode(response)
        return Reply(200, [_CONTENT_TYPE], len(body), (body,), _nothing)


def operation(router_pod: str | None, kv_endpoints: list[str]) -> Operation:
    """Returns /infer, to be served by this pod."""
    return Operation("POST", (ROUTE,), ROUTE, _Responder(router_pod or UNSET, kv_endpoints).parse)


def parse_inference(body: bytes) -> Inference:
    """`{"prompt": "…", "model": "…", …}`: what the router looks at, and the rest. Raises InvalidRequest."""
    members = parse_object(body)
    return Inference(_text(members, "prompt"), members, model=_text(members, "model", required=False))


def parse_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, whatever its declared type. Raises InvalidRequest, which says where it is wrong."""
    if not body:
        raise InvalidRequest("the body is empty; send a JSON object")
    try:
        return _decode_object(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the body is not a JSON object that can be read: it is nested too deeply") from error


def upstream_call(adapter: ProtocolAdapter, model: str, request: Inference) -> Call:
    """Returns the call that puts the prompt to a model server of this protocol."""
    headers = [header for header in request.headers() if header[0] not in _REPLACED] + _JSON_HEADERS
    path, body = adapter.infer_call(model, request)
    return Call("POST", path, headers, body, request.key, request.version, model, adapter)


def output_of(adapter: ProtocolAdapter, reply: Reply, body: bytes) -> Any:
    """Returns the generated text, or the list of tensors. Raises UpstreamErrorResponse or UpstreamBroken."""
    if 400 <= reply.status < 600:
        raise UpstreamErrorResponse(
            f"the model server responded with {reply.status}: {body[:_MAX_DETAIL].decode(errors='replace')}",
            reply.status,
            next((value for name, value in reply.headers if name == "retry-after"), None),
        )
    try:
        return adapter.output(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeError, LookupError, TypeError) as error:
        raise UpstreamBroken(f"the model server responded with {reply.status} and without an output") from error


def _text(members: dict[str, Any], name: str, required: bool = True) -> Any:
    """Take a member that must be a string out of `members`; None if it is missing and not required."""
    value = members.pop(name, UNSET)
    if isinstance(value, str):
        return value
    if value in (UNSET, None) and not required:
        return None
    found = "it is missing" if value is UNSET else f"it is of type {_JSON_TYPES[type(value)]}"
    raise InvalidRequest(f"`{name}` must be a string - at `$.{name}`: {found}")


def _nothing() -> None:
    """There is nothing to stop: the response is whole."""
