"""Anthropic's Messages API, which servers of OpenAI's API serve too (vLLM, SGLang, llama.cpp).

A request names its model in the body, as OpenAI's do, and differs in the members that make the prompt. What differs
beside them is the form of errors.
"""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from app.protocols.problem import NO_MORE

_MEMBERS = ("system", "messages")
PATHS = {"/v1/messages": _MEMBERS, "/v1/messages/count_tokens": _MEMBERS}
"""The members that make the prompt of a POST to each path, in the order in which models read them."""

_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}
"""The types of Anthropic's errors by status. Any other 4xx is an `invalid_request_error`, any other 5xx an `api_error`.

Their own status of an overload is 529. Libraries try again after either.
"""


def error_body(status: int, code: str, detail: str, more: Mapping[str, object] = NO_MORE, /) -> tuple[str, bytes]:
    """Returns content type and body of an error. `code` and `more` are members of the router's own."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error = {"type": kind, "message": detail, "code": code, **more}
    return "application/json", msgspec.json.encode({"type": "error", "error": error})
