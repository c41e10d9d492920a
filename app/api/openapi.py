"""The description of the router's HTTP interface, OpenAPI 3.1, at `/openapi.json`.

It is made once, from what is served: the operations of the protocols, the errors with their statuses, and the forms of
errors, each of which is asked for an example. What only a model server checks or makes has no schema here: requests
may have any further members, and successful responses any content.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from importlib import metadata
from typing import Any

import falcon
import msgspec

from app.api import error_responses, openapi_examples, own_paths
from app.api.own_paths import ABOUT_BODIES, OwnPath
from app.api.path_access import Needs, needs
from app.config.settings import Settings
from app.errors import (
    LIMIT_SCOPES,
    AuthenticationUnavailable,
    ModelNotAllowed,
    Overload,
    ResponseNotFound,
    RouterError,
    Unauthorized,
    UpstreamErrorResponse,
)
from app.protocols import anthropic, infer, openai, problem
from app.protocols.adapters import PROTOCOLS
from app.protocols.interfaces import ErrorBody, Kind, Operation

_Document = dict[str, Any]
_OF_ACCESS = (Unauthorized, AuthenticationUnavailable, ModelNotAllowed)
_OF_ROUTER = "the router"
_OF_ADMIN_LISTENER = "the admin listener"
_ANY: _Document = {"*/*": {}}
_FILE: _Document = {"description": "Passed on as it comes.", "contentMediaType": "application/octet-stream"}
_OVERLOAD = Overload("router", limit=1, in_flight=1, expected_wait_ms=1)._asdict()
"""What a 429 says of the limit that was met."""
_OF_OVERLOAD: dict[str, _Document] = {
    "limit_scope": {"enum": list(LIMIT_SCOPES)},
    "expected_wait_ms": {"type": ["integer", "null"]},
}
_TAGS = {
    _OF_ROUTER: "The router responds by itself.",
    _OF_ADMIN_LISTENER: "At the address of ADMIN_BIND, and nowhere else.",
    **{each.title: "The request goes to a model server, and its response comes back as it is." for each in PROTOCOLS},
}
_INDEX = "A JSON object, or nothing at all."


class OpenApiResource:
    """GET /openapi.json."""

    def __init__(self, settings: Settings) -> None:
        self._document = msgspec.json.encode(document(settings))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._document

    on_head = on_get


def document(settings: Settings) -> _Document:
    """Returns the whole document, for a router of these settings."""
    paths: dict[str, _Document] = {}
    own = own_paths.PATHS if settings.admin_bind is None else own_paths.PATHS + own_paths.OF_ADMIN_LISTENER
    schemes = _security_schemes(settings)
    for template, method, described in (*_operations(settings), *_own_operations(own, settings)):
        accepted: list[_Document] = [{name: []} for name in schemes.get(needs(template), ())]
        if accepted:
            described["security"] = accepted
        paths.setdefault(_shown(template), {})[method.lower()] = described
    used = {tag for path in paths.values() for described in path.values() for tag in described["tags"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference router",
            "version": metadata.version("inference-router"),
            "description": "One exact limit of concurrent inference requests in front of model servers. Models can "
            "have further paths, which their routes list and this document does not.",
        },
        "tags": [{"name": name, "description": about} for name, about in _TAGS.items() if name in used],
        "paths": paths,
        "components": {
            "schemas": {
                "InferResponse": _infer_response(),
                **{name: _error_schema(form) for name, form in _FORMS.items()},
            },
            "securitySchemes": {name: one for of_needs in schemes.values() for name, one in of_needs.items()},
        },
    }


def _security_schemes(settings: Settings) -> dict[Needs, dict[str, _Document]]:
    """Returns the credentials of which a request needs one. That of TENANT_HEADER is the gateway's, and not here."""
    of_callers: dict[str, _Document] = {}
    if settings.keys_file or settings.jwt_issuer:
        of_callers["bearer"] = {"type": "http", "scheme": "bearer"}
        of_callers["apiKey"] = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    if settings.tls_client_ca_file:
        of_callers["certificate"] = {"type": "mutualTLS"}
    of_operators: dict[str, _Document] = {}
    if settings.admin_key_sha256:
        of_operators["adminKey"] = {"type": "http", "scheme": "bearer"}
        of_operators["adminPassword"] = {"type": "http", "scheme": "basic"}
    return {Needs.CALLER: of_callers, Needs.ADMIN_KEY: of_operators}


def _errors_of_access(template: str, settings: Settings) -> tuple[type[RouterError], ...]:
    needed = needs(template)
    if needed is Needs.CALLER and settings.authenticates:
        return (Unauthorized, AuthenticationUnavailable) if settings.jwt_issuer else (Unauthorized,)
    return (Unauthorized,) if needed is Needs.ADMIN_KEY and settings.admin_key_sha256 else ()


_FORMS: dict[str, ErrorBody] = {
    "Problem": problem.error_body,
    "ErrorOfV2": PROTOCOLS[1].error_body,
    "ErrorOfOpenAI": openai.ADAPTER.error_body,
    "ErrorOfAnthropic": anthropic.error_body,
}


def _operations(settings: Settings) -> Iterator[tuple[str, str, _Document]]:
    """Yields template, method and description of every operation that goes to a model."""
    own = infer.operation(None, [])
    known: list[tuple[str, ErrorBody, Operation]] = [(_OF_ROUTER, problem.error_body, own)]
    known += [(each.title, each.error_body, operation) for each in PROTOCOLS for operation in each.operations]
    for title, error_body, operation in known:
        for template in operation.templates:
            yield template, operation.method, _operation(title, error_body, operation, template, settings)


def _operation(title: str, error_body: ErrorBody, operation: Operation, template: str, settings: Settings) -> _Document:
    described: _Document = {
        "operationId": _id(operation.method, template),
        "summary": openapi_examples.summary_of(template) or f"{operation.method} {template}, of {title}.",
        "tags": [title],
        "parameters": _parameters(template),
    }
    if operation.has_body and operation.kind is not Kind.ABOUT_RESPONSE:
        described["requestBody"] = {"required": True, "content": _request_content(operation, template)}
    errors = [error for error in error_responses.statuses() if operation.has_body or error not in ABOUT_BODIES]
    if operation.kind is not Kind.ABOUT_RESPONSE:
        errors.remove(ResponseNotFound)
    possible = (*_errors_of_access(template, settings), *((ModelNotAllowed,) if settings.authenticates else ()))
    errors = [error for error in errors if error not in _OF_ACCESS or error in possible]
    made_here = {"$ref": "#/components/schemas/InferResponse"} if operation.route == infer.ROUTE else None
    success = openapi_examples.success(template, made_here)
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


def _own_operations(paths: Iterable[OwnPath], settings: Settings) -> Iterator[tuple[str, str, _Document]]:
    """Yields the same of the paths at which the router responds by itself."""
    for own in paths:
        access = _errors_of_access(own.template, settings)
        errors = [*(each for each in own.errors if each is not ModelNotAllowed or settings.authenticates), *access]
        for method in own.methods:
            content: _Document = {} if method == "HEAD" else {"content": {own.content_type: {}}}
            described: _Document = {
                "operationId": _id(method, own.template),
                "summary": own.summary,
                "tags": [_OF_ADMIN_LISTENER if own in own_paths.OF_ADMIN_LISTENER else _OF_ROUTER],
                "parameters": _parameters(own.template, own.query),
                "responses": {
                    "200": {"description": own.summary, **content},
                    **_error_responses(own.error_body, errors, own.statuses, has_body=method != "HEAD"),
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
        members, required = {"model": {"type": "string"}, "file": _FILE}, ["model"]
    elif template == infer.ROUTE:
        members, required = {"model": {"type": ["string", "null"]}, "prompt": {"type": "string"}}, ["prompt"]
    elif template.startswith("/v2/models/"):
        if template.endswith("/infer"):
            members, required = {"inputs": {"type": "array"}}, ["inputs"]
    else:
        members = {"model": {"type": ["string", "null"]}, **{name: {} for name in openai.PATHS.get(template, ())}}
        if openapi_examples.streams_on_demand(template):
            members["stream"] = {"description": "Whether the response is a stream of events."}
    schema: _Document = {"type": "object", "properties": members, "required": required}
    example = openapi_examples.EXAMPLES.get(template)
    as_json: _Document = {"schema": schema, **({"example": example.request} if example else {})}
    if template.endswith("/infer") and template != infer.ROUTE:
        binary = {"schema": {"type": "string", "format": "binary"}}
        return {"application/json": as_json, "application/octet-stream": binary}
    return {"multipart/form-data": {"schema": schema}} if operation.kind is Kind.FORM else {"application/json": as_json}


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


def _example(form: ErrorBody, overload: Mapping[str, object] = problem.NO_MORE) -> tuple[str, Any]:
    content_type, body = form(429, "limit_reached", "text", overload)
    return content_type, msgspec.json.decode(body)


def _error_schema(form: ErrorBody) -> _Document:
    schema = _schema(_example(form, _OVERLOAD)[1], _example(form)[1])
    if form is openai.ADAPTER.error_body:  # model servers' own errors have this form too, and no code or a number
        schema["properties"]["error"]["properties"]["code"] = {"type": ["string", "integer", "null"]}
    return schema


def _schema(example: Any, least: Any) -> _Document:
    """Returns the schema of what looks like this. Members that `least` lacks need not be there."""
    if isinstance(example, dict):
        members = {name: _schema(value, least.get(name)) for name, value in example.items()}
        members |= {name: schema for name, schema in _OF_OVERLOAD.items() if name in members}
        return {"type": "object", "properties": members, "required": [name for name in members if name in least]}
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


def _parameters(template: str, query: Iterable[tuple[str, str]] = ()) -> list[_Document]:
    """Returns those in the path, and those in the query with their types."""
    places = re.findall(r"\{(\w+)(:int)?", template)
    kinds = [(name, "path", "integer" if number else "string") for name, number in places]
    kinds += [(name, "query", kind) for name, kind in query]
    return [
        {"name": name, "in": place, "required": place == "path", "schema": {"type": kind}}
        for name, place, kind in kinds
    ]


def _id(method: str, template: str) -> str:
    return "_".join((method.lower(), *(re.findall(r"\w+", _shown(template)) or ["root"])))
