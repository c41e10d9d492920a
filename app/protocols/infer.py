"""`POST /infer`, the router's own wire format: one prompt in, one output out, whatever the model server speaks."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from app.errors import UpstreamBroken, UpstreamErrorResponse
from app.http_fields import Headers
from app.protocols.adapters import PROTOCOLS
from app.protocols.calls import Attempts, Call, Inference, Model, Reply
from app.protocols.interfaces import ClientRequest, Operation, ProtocolAdapter
from app.protocols.json_body import MalformedJson, MaybeRaw, check_utf8, given, object_of, type_of
from app.protocols.request_body import not_a_string, read_request, refuse_ambiguous, text_of

ROUTE = "/infer"
_CONTENT_TYPE = ("content-type", "application/json")
_JSON_HEADERS = [_CONTENT_TYPE, ("accept", "application/json")]
_REPLACED = frozenset(("content-type", "content-encoding", "accept", "accept-encoding"))
_MAX_DETAIL = 500
_NOT_PASSED_ON = ("prompt", "model", "stream")
"""`stream`, because the response to /infer is one object."""
_MEMBERS = (*_NOT_PASSED_ON, *(adapter.prompt_member for adapter in PROTOCOLS))

_Request = msgspec.defstruct("_Request", [(name, MaybeRaw, UNSET) for name in _MEMBERS])
_decode = msgspec.json.Decoder(_Request).decode


class InferResponse(msgspec.Struct, rename="camel"):
    """The response's members in order. A nameless pod has no `routerPod`, a simulated model no `output`."""

    model_ref: str
    prompt: Raw
    router_pod: str | UnsetType
    kv_endpoints: list[str]
    processing_ms: int
    output: MaybeRaw = UNSET


class _Responder(NamedTuple):
    """What every response tells of this router."""

    router_pod: str | UnsetType
    kv_endpoints: list[str]

    def parse(self, request: ClientRequest) -> "_ParsedInference":
        return _ParsedInference(self, parse_inference(request))


class _ParsedInference(NamedTuple):
    """The `ParsedRequest` of /infer."""

    responder: _Responder
    inference: Inference
    version: str = ""

    @property
    def model(self) -> str | None:
        return self.inference.model

    def prompt(self) -> Sequence[bytes | memoryview]:
        return (memoryview(self.inference.prompt)[1:-1],)

    def send(self, model: Model, headers: Callable[[], Headers], key: bytes, version: str, attempts: Attempts) -> Reply:
        began = time.monotonic()
        given = self.inference._replace(headers=headers, key=key, version=version, attempts=attempts)
        output = model.infer(given)
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


def parse_inference(request: ClientRequest) -> Inference:
    """`{"prompt": "…", "model": "…", …}`: what the router looks at, and the rest. Raises InvalidRequest."""
    members = given(read_request(_decode, request, request.body))
    refuse_ambiguous(_decode, request, members, _MEMBERS)
    prompt = members.get("prompt")
    if prompt is None or type_of(prompt) != "string":
        raise not_a_string("prompt", "it is missing" if prompt is None else f"it is of type {type_of(prompt)}")
    model = text_of("model", members["model"]) if "model" in members else None
    return Inference(prompt, request.body, members, model=model)


def upstream_call(adapter: ProtocolAdapter, model: str, request: Inference) -> Call:
    """Returns the call that puts the prompt to a model server of this protocol."""
    headers = [header for header in request.headers() if header[0] not in _REPLACED] + _JSON_HEADERS
    path, value = adapter.infer_call(model, request.prompt)
    own = adapter.prompt_member in request.members
    first = () if own else (b'"%b":' % adapter.prompt_member.encode(), *value)
    dropped = [request.members[name] for name in _NOT_PASSED_ON if name in request.members]
    body = object_of(first, request.body, dropped)
    # The call names no model, so `encode` puts the name in that the endpoint has for it.
    attempts = request.attempts
    return Call("POST", path, headers, body, request.key, request.version, adapter=adapter, attempts=attempts)


def output_of(adapter: ProtocolAdapter, reply: Reply, body: bytes) -> Raw:
    """Returns the generated text, or the list of tensors, as the model server wrote it.

    Raises UpstreamErrorResponse or UpstreamBroken.
    """
    if 400 <= reply.status < 600:
        raise UpstreamErrorResponse(
            f"the model server responded with {reply.status}: {body[:_MAX_DETAIL].decode(errors='replace')}",
            reply.status,
            next((value for name, value in reply.headers if name == "retry-after"), None),
            is_clients_fault=reply.is_clients_fault,
        )
    try:
        output = adapter.output(body)
        check_utf8(memoryview(output))
    except MalformedJson as error:
        reason = f"the model server responded with {reply.status} and without an output that can be read: {error}"
        raise UpstreamBroken(reason) from error
    return output


def _nothing() -> None:
    """There is nothing to stop: the response is whole."""
