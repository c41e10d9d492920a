"""The attributes of spans, by the semantic conventions of OpenTelemetry, and what each is made of."""

from functools import lru_cache
from urllib.parse import urlsplit
from wsgiref.types import WSGIEnvironment

from app.observability.request_trace import TracedRequest
from app.protocols.calls import Call

Attributes = dict[str, str | int | float]

_MAX_TEXT = 256
"""Characters that are kept of what a client chooses."""
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
"""The GenAI operation of a path of a model server. Others have none that the conventions name."""


def of_environ(environ: WSGIEnvironment, route: str) -> Attributes:
    """Returns what is known of a request when it arrives (HTTP server spans)."""
    host, port = _host(environ.get("HTTP_HOST", "")[:_MAX_TEXT])
    attributes: Attributes = {
        "http.request.method": environ["REQUEST_METHOD"],
        "http.route": route,
        "url.path": environ.get("PATH_INFO", "")[:_MAX_TEXT],
        "url.scheme": environ["wsgi.url_scheme"],
        "network.protocol.version": environ.get("SERVER_PROTOCOL", "").removeprefix("HTTP/"),
        "client.address": environ.get("REMOTE_ADDR", ""),
        "server.address": host,
        "user_agent.original": environ.get("HTTP_USER_AGENT", "")[:_MAX_TEXT],
    }
    attributes = {name: value for name, value in attributes.items() if value}
    if port:
        attributes["server.port"] = port
    return attributes


def of_call(model: str, url: str, call: Call, gen_ai: bool) -> tuple[str, Attributes]:
    """Returns the name and the attributes of the span of an attempt (HTTP client spans).

    `gen_ai`: those of GenAI too, where the path is of an operation that has a name there.
    """
    address, port = _address(url)
    path = call.path.partition("?")[0]
    attributes: Attributes = {
        "http.request.method": call.method,
        "server.address": address,
        "server.port": port,
        "url.full": f"{url}{path}",
        "router.model": model,
    }
    operation = _OPERATIONS.get(path) if gen_ai else None
    if operation is None:
        return call.method, attributes
    attributes["gen_ai.operation.name"] = operation
    attributes["gen_ai.request.model"] = model
    if call.adapter is not None:
        attributes["gen_ai.provider.name"] = call.adapter.name
    return f"{operation} {model}", attributes


def of_request(request: TracedRequest, code: str) -> Attributes:
    """Returns what is known of a request at its end. `code` is that of the router's own error, or empty."""
    attributes: Attributes = {
        "http.response.status_code": request.status,
        "router.request_id": request.request_id,
        "router.queue_s": round(request.queue_s, 6),
    }
    if request.model:
        attributes["router.model"] = request.model
    if request.rejection is not None:
        attributes["router.rejection"] = request.rejection
    if code or request.status >= 500:
        attributes["error.type"] = code or str(request.status)
    return attributes


def of_outcome(code: str) -> Attributes:
    """Returns how an attempt ended. `code` is the status of the response, or what went wrong."""
    status = int(code) if code.isdecimal() else 0
    attributes: Attributes = {"http.response.status_code": status} if status else {}
    if not 0 < status < 400:
        attributes["error.type"] = code or "_OTHER"
    return attributes


@lru_cache(maxsize=1024)
def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _host(field: str) -> tuple[str, int]:
    """Returns host and port of a Host header; 0 for a port that it does not have."""
    host, colon, port = field.rpartition(":")
    if not colon or not port.isdecimal() or len(port) > 5:
        host, port = field, ""
    return host.strip("[]"), int(port or 0)
