"""The description of the router's HTTP interface, OpenAPI 3.1, at `/openapi.json`.

It is made once, from what is served: the operations of the protocols, the errors with their statuses, and the forms of
errors, each of which is asked for an example. What only a model server checks or makes has no schema here: requests
may have any further members, and successful responses any content.
"""

import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from importlib import metadata
from typing import Any, NamedTuple

import falcon
import msgspec

from app.api import error_responses
from app.errors import (
    BodyStalled,
    BodyTooLarge,
    InvalidRequest,
    ModelNotFound,
    ResponseNotFound,
    RouterError,
    UnsupportedBody,
    UpstreamErrorResponse,
)
from app.protocols import anthropic, infer, openai, problem
from app.protocols.adapters import PROTOCOLS
from app.protocols.interfaces import ErrorBody, Kind, Operation

PATH = "/openapi.json"

_Document = dict[str, Any]
_ABOUT_BODIES = (BodyStalled, BodyTooLarge, UnsupportedBody)
_OF_ROUTER = "the router"
_ANY: _Document = {"*/*": {}}
_INDEX = "A JSON object, or nothing at all."


class OwnPath(NamedTuple):
    """A path at which the router responds by itself."""

    template: str
    summary: str
    error_body: ErrorBody = problem.error_body
    errors: tuple[type[RouterError], ...] = ()
    statuses: tuple[HTTPStatus, ...] = ()
    """Those of other errors."""
    method: str = "GET"
    """GET implies HEAD."""
    content_type: str = "application/json"


_V2 = PROTOCOLS[1].error_body
_UNAVAILABLE = (HTTPStatus.SERVICE_UNAVAILABLE,)
OWN_PATHS = (
    OwnPath("/healthz", "Liveness: 200 while the process lives."),
    OwnPath("/readyz", "Readiness: 200 while requests can be served.", statuses=_UNAVAILABLE),
    OwnPath(
        "/metrics",
        "The metrics, as Prometheus text or OpenMetrics. With ADMIN_BIND, only there.",
        statuses=(HTTPStatus.NOT_FOUND,),
        content_type="text/plain",
    ),
    OwnPath(PATH, "This document."),
    OwnPath("/v1/models", "The models that can be asked for, aliases included.", openai.ADAPTER.error_body),
    OwnPath("/v1/models/{name:path}", "One model.", openai.ADAPTER.error_body, (ModelNotFound,)),
    OwnPath("/v2", "What this server is.", _V2),
    OwnPath("/v2/health/live", "Liveness.", _V2),
    OwnPath("/v2/health/ready", "Readiness.", _V2, statuses=_UNAVAILABLE),
    *(
        OwnPath(template, "Whether an endpoint of the model is up.", _V2, (ModelNotFound, InvalidRequest), _UNAVAILABLE)
        for template in ("/v2/models/{name}/ready", "/v2/models/{name}/versions/{version}/ready")
    ),
    OwnPath(
        "/v2/models/stats",
        "Statistics of all models. With ADMIN_BIND, only there.",
        _V2,
        statuses=(HTTPStatus.NOT_FOUND,),
    ),
    OwnPath(
        "/v2/repository/index", "The models and their state.", _V2, (InvalidRequest, *_ABOUT_BODIES), method="POST"
    ),
)


class OpenApiResource:
    """GET /openapi.json."""

    def __init__(self) -> None:
        self._document = msgspec.json.encode(document())

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._document

    on_head = on_get


def document() -> _Document:
    """Returns the whole document."""
    paths: dict[str, _Document] = {}
    for template, method, described in (*_operations(), *_own_operations()):
        paths.setdefault(_shown(template), {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference router",
            "version": metadata.version("inference-router"),
            "description": "One exact limit of concurrent inference requests in front of model servers. Models can "
            "have further paths, which their routes list and this document does not.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "InferResponse": _infer_response(),
                **{name: _error_schema(form) for name, form in _FORMS.items()},
            }
        },
    }


_FORMS: dict[str, ErrorBody] = {
    "Problem": problem.error_body,
    "ErrorOfV2": _V2,
    "ErrorOfOpenAI": openai.ADAPTER.error_body,
    "ErrorOfAnthropic": anthropic.error_body,
}


def _operations() -> Iterator[tuple[str, str, _Document]]:
    """Yields template, method and description of every operation that goes to a model."""
    own = infer.operation(None, [])
    known: list[tuple[str, ErrorBody, Operation]] = [(_OF_ROUTER, problem.error_body, own)]
    known += [(each.title, each.error_body, operation) for each in PROTOCOLS for operation in each.operations]
    for title, error_body, operation in known:
        for template in operation.templates:
            yield template, operation.method, _operation(title, error_body, operation, template)


def _operation(title: str, error_body: ErrorBody, operation: Operation, template: str) -> _Document:
    described: _Document = {
        "operationId": _id(operation.method, template),
        "summary": f"{operation.method} {template}, of {title}.",
        "tags": [title],
        "parameters": _parameters(template),
    }
    if operation.has_body and operation.kind is not Kind.ABOUT_RESPONSE:
        described["requestBody"] = {"required": True, "content": _request_content(operation, template)}
    errors = [error for error in error_responses.statuses() if operation.has_body or error not in _ABOUT_BODIES]
    if operation.kind is not Kind.ABOUT_RESPONSE:
        errors.remove(ResponseNotFound)
    if operation.route == infer.ROUTE:
        success = {"application/json": {"schema": {"$ref": "#/components/schemas/InferResponse"}}}
    else:
        success = _ANY
    described["responses"] = {
        "200": {"description": "What the model server returns.", "content": success},
        **_error_responses(operation.error_body or error_body, errors, (), passed=operation.route != infer.ROUTE),
        "default": {"description": _passed(operation), "content": _ANY},
    }
    return described


def _passed(operation: Operation) -> str:
    if operation.route == infer.ROUTE:
        return f"An error of the model server, with its status and the code `{UpstreamErrorResponse.code}`."
    return "A model server's own response, as it is."


def _own_operations() -> Iterator[tuple[str, str, _Document]]:
    """Yields the same of the paths at which the router responds by itself."""
    for own in OWN_PATHS:
        for method in ("GET", "HEAD") if own.method == "GET" else (own.method,):
            content: _Document = {} if method == "HEAD" else {"content": {own.content_type: {}}}
            described: _Document = {
                "operationId": _id(method, own.template),
                "summary": own.summary,
                "tags": [_OF_ROUTER],
                "parameters": _parameters(own.template),
                "responses": {
                    "200": {"description": own.summary, **content},
                    **_error_responses(own.error_body, own.errors, own.statuses, has_body=method != "HEAD"),
                },
            }
            if method == "POST":
                described["requestBody"] = {
                    "description": _INDEX,
                    "content": {"application/json": {"schema": {"type": "object"}}},
                }
            yield own.template, method, described


def _request_content(operation: Operation, template: str) -> _Document:
    """Returns what a request may hold. What only the model server checks is not described."""
    members: dict[str, _Document] = {}
    required: list[str] = []
    if operation.kind is Kind.FORM:
        members, required = {"model": {"type": "string"}}, ["model"]
    elif template == infer.ROUTE:
        members, required = {"model": {"type": ["string", "null"]}, "prompt": {"type": "string"}}, ["prompt"]
    elif template.startswith("/v2/models/"):
        if template.endswith("/infer"):
            members, required = {"inputs": {"type": "array"}}, ["inputs"]
    else:
        members = {"model": {"type": ["string", "null"]}, **{name: {} for name in openai.PATHS.get(template, ())}}
    schema: _Document = {"type": "object", "properties": members, "required": required}
    if template.endswith("/infer") and template != infer.ROUTE:
        binary = {"schema": {"type": "string", "format": "binary"}}
        return {"application/json": {"schema": schema}, "application/octet-stream": binary}
    return {"multipart/form-data" if operation.kind is Kind.FORM else "application/json": {"schema": schema}}


def _error_responses(
    form: ErrorBody,
    errors: Iterable[type[RouterError]],
    others: Iterable[HTTPStatus],
    *,
    has_body: bool = True,
    passed: bool = False,
) -> dict[str, _Document]:
    """Returns the response of each status that these errors have, with the codes that tell them apart.

    `passed`: a model server's own response with such a status passes as it is.
    """
    schema_name = next(name for name, known in _FORMS.items() if known is form)
    content_type, _ = _example(form)
    codes: dict[int, list[str]] = {status.value: [] for status in others}
    for error in errors:
        codes.setdefault(error_responses.statuses()[error], []).append(error.code)
    codes |= {405: ["method_not_allowed"], 500: [RouterError.code]}
    responses: dict[str, _Document] = {}
    for status, of_status in sorted(codes.items()):
        listed = f": {', '.join(f'`{code}`' for code in of_status)}" if of_status else ""
        responses[str(status)] = {"description": problem.phrase(status) + listed}
        if has_body:
            schema = {"$ref": f"#/components/schemas/{schema_name}"}
            responses[str(status)]["content"] = {content_type: {"schema": schema}, **(_ANY if passed else {})}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            about = "Seconds after which a request may be admitted."
            responses[str(status)]["headers"] = {
                "Retry-After": {"description": about, "schema": {"type": "integer", "minimum": 0}}
            }
    return responses


def _example(form: ErrorBody) -> tuple[str, Any]:
    content_type, body = form(429, "limit_reached", "text")
    return content_type, msgspec.json.decode(body)


def _error_schema(form: ErrorBody) -> _Document:
    schema = _schema(_example(form)[1])
    if form is openai.ADAPTER.error_body:  # model servers' own errors have this form too, and no code or a number
        schema["properties"]["error"]["properties"]["code"] = {"type": ["string", "integer", "null"]}
    return schema


def _schema(example: Any) -> _Document:
    """Returns the schema of what looks like this."""
    if isinstance(example, dict):
        members = {name: _schema(value) for name, value in example.items()}
        return {"type": "object", "properties": members, "required": list(members)}
    return {} if example is None else {"type": "integer" if isinstance(example, int) else "string"}


def _infer_response() -> _Document:
    _, schemas = msgspec.json.schema_components([infer.InferResponse])
    schema: _Document = schemas["InferResponse"]
    schema["properties"]["prompt"] = {"type": "string"}  # Raw in the record, so that it is not copied
    schema["required"].remove("routerPod")  # a nameless pod has none
    return schema


def _shown(template: str) -> str:
    """Returns Falcon's URI template as OpenAPI has it."""
    return re.sub(r":\w+\}", "}", template)


def _parameters(template: str) -> list[_Document]:
    names = re.findall(r"\{(\w+)", template)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _id(method: str, template: str) -> str:
    return "_".join((method.lower(), *re.findall(r"\w+", _shown(template))))
