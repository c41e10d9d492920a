"""Open Inference Protocol v2 (REST): inference with JSON or binary tensors, and the metadata of a model.

Of Triton's extensions it has text generation, and the configuration and statistics of a model. A request names its
model, and perhaps a version, in the path. The body passes untouched.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw

from app.errors import InvalidRequest, ModelNotFound
from app.protocols import json_body, problem, request_body
from app.protocols.calls import Call
from app.protocols.interfaces import VERSION_NAME, ClientRequest, Operation, ParsedCall, ProtocolAdapter
from app.protocols.json_body import MaybeRaw

MODELS = "/v2/models"
_MODEL = (f"{MODELS}/{{name}}", f"{MODELS}/{{name}}/versions/{{version}}")
READY_TEMPLATES = tuple(f"{template}/ready" for template in _MODEL)
"""The readiness of a model: the router responds itself."""

_VERSION = re.compile(VERSION_NAME)
_JSON_LENGTH = "Inference-Header-Content-Length"
_ACTIONS = ("/infer", "/generate", "/generate_stream", "/config", "/stats")
_PATH = re.compile(rf"{MODELS}/[^/?]*(?:/versions/([^/?]*))?({'|'.join(_ACTIONS)})?(\?.*)?", re.DOTALL)
"""A path that `_path` made."""


class _Request(msgspec.Struct):
    """The members that the router has to know of."""

    inputs: Raw


class _Generation(msgspec.Struct):
    """The same of a request for text."""

    text_input: MaybeRaw = UNSET


class _Response(msgspec.Struct):
    """The member that /infer returns."""

    outputs: Raw


_decode = msgspec.json.Decoder(_Request).decode
_decode_generation = msgspec.json.Decoder(_Generation).decode
_decode_response = msgspec.json.Decoder(_Response).decode


def check_version(model: str, version: str) -> None:
    """Raises ModelNotFound for what can't be a version: it is going to be a part of a path."""
    if version and not _VERSION.fullmatch(version):
        raise ModelNotFound(f"{model} has no such version; a version is up to 63 of A-Z a-z 0-9 . _ -")


def _parse_infer(request: ClientRequest) -> ParsedCall:
    is_json = _is_form(request) and request.header(_JSON_LENGTH) is None
    return _parse("/infer", partial(_inputs, request), request, is_json=is_json)


def _parse_generate(action: str, request: ClientRequest) -> ParsedCall:
    return _parse(action, partial(_text_input, request), request, is_json=_is_form(request))


def _is_form(request: ClientRequest) -> bool:
    """Whether a body is declared as a form, which curl does by default, and some model servers reject."""
    is_form = (request.header("Content-Type") or "").lower().startswith("application/x-www-form-urlencoded")
    return is_form and not _is_compressed(request)


def _parse(action: str, prompt: Any, request: ClientRequest, *, is_json: bool = False) -> ParsedCall:
    name, version = request.params["name"], request.params.get("version", "")
    check_version(name, version)
    query = f"?{request.query}" if request.query else ""
    path = _path(name, version, action, query)
    return ParsedCall(ADAPTER, request.operation.method, path, request.body, name, prompt, version, is_json=is_json)


def _path(model: str, version: str, action: str, query: str = "") -> str:
    of_version = f"/versions/{quote(version, safe='')}" if version else ""
    return f"{MODELS}/{quote(model, safe='')}{of_version}{action}{query}"


def _inputs(request: ClientRequest) -> Sequence[bytes | memoryview]:
    """See ParsedRequest.prompt."""
    if _is_compressed(request):
        return ()  # only the model server reads it
    inputs = request_body.read_request(_decode, request, _json_of(request)).inputs
    if json_body.type_of(inputs) != "array":
        raise InvalidRequest(f"`inputs` must be an array: it is of type {json_body.type_of(inputs)}")
    return (memoryview(inputs),)


def _text_input(request: ClientRequest) -> Sequence[bytes | memoryview]:
    """See ParsedRequest.prompt. The member is that of Triton's backends for language models."""
    if _is_compressed(request):
        return ()
    given = request_body.read_request(_decode_generation, request, request.body).text_input
    return () if given is UNSET else (memoryview(given),)


def _is_compressed(request: ClientRequest) -> bool:
    return (request.header("Content-Encoding") or "identity").lower() != "identity"


def _json_of(request: ClientRequest) -> bytes | memoryview:
    """Returns the part of the body that is JSON: all of it, or what comes before the binary tensors."""
    given = request.header(_JSON_LENGTH)
    if given is None:
        return request.body
    if not re.fullmatch(r"\d{1,10}", given, re.ASCII) or int(given) > len(request.body):
        raise InvalidRequest(f"{_JSON_LENGTH}: must be a number, at most the {len(request.body)} bytes of the body")
    return memoryview(request.body)[: int(given)]


def _encode(call: Call, model: str, version: str | None) -> tuple[str, Sequence[bytes]]:
    """See ProtocolAdapter."""
    found = _PATH.fullmatch(call.path)
    if found is None:
        raise ValueError(f"{call.path!r} is no path of a model")
    own_version, action, query = found.groups(default="")
    if model == call.model and (version is None or version == own_version):
        return call.path, (call.body,)
    return _path(model, own_version if version is None else version, action, query), (call.body,)


def _infer_call(model: str, prompt: Raw) -> tuple[str, Sequence[bytes]]:
    """One tensor `prompt` of type BYTES."""
    tensor = (b'[{"name":"prompt","shape":[1],"datatype":"BYTES","data":[', prompt, b"]}]")
    return _path(model, "", "/infer"), tensor


def _output(response: bytes) -> Raw:
    return json_body.decode(_decode_response, response).outputs


def _error_body(
    status: int, code: str, detail: str, more: Mapping[str, object] = problem.NO_MORE, /
) -> tuple[str, bytes]:
    """A problem document with the member `error`, which the protocol wants."""
    document = problem.document(problem.phrase(status), status, detail, code, error=detail, more=more)
    return problem.CONTENT_TYPE, document


def _operation(method: str, action: str, parse: Callable[[ClientRequest], ParsedCall]) -> Operation:
    templates = tuple(f"{template}{action}" for template in _MODEL)
    return Operation(method, templates, templates[0], parse, has_body=method == "POST")


ADAPTER = ProtocolAdapter(
    name="v2",
    root="/v2",
    title="Open Inference Protocol v2",
    operations=(
        _operation("POST", "/infer", _parse_infer),
        *(_operation("POST", action, partial(_parse_generate, action)) for action in ("/generate", "/generate_stream")),
        *(_operation("GET", action, partial(_parse, action, tuple)) for action in ("", "/config", "/stats")),
    ),
    encode=_encode,
    prompt_member="inputs",
    infer_call=_infer_call,
    output=_output,
    health_path="/v2/health/ready",
    error_body=_error_body,
)
