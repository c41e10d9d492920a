"""Cross-origin requests: which pages may use the router from a browser (the Fetch standard, section 3.3).

This layer is outside of all others, so that errors and the responses of model servers get the same header fields. It
passes the body through untouched, so that its `close` still ends the exchange. No `Access-Control-*` field of a model
server's own is passed on: two of one name would make a browser refuse the response. (Falcon's middleware does not see a
model server's fields, and lacks `Vary`.)

Cookies are never allowed: the router takes none for itself, and passes none on unless a route says so.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from app.http_fields import FIELD_NAME, Headers

_NEVER = "/admin/"
"""Below this path no page of another origin may do anything, whatever the setting says (admin/access.py)."""
_PREFIX = "access-control-"
_ALLOWED = "Access-Control-Allow-Origin"
_EXPOSED = "Retry-After, Server-Timing, X-Request-Id, Inference-Header-Content-Length, *"
"""The star, which older browsers lack, stands for all others."""
_MAX_AGE_S = 7200  # the most that Chromium keeps
_NAMES = re.compile(rf"{FIELD_NAME}(?:[ \t]*,[ \t]*{FIELD_NAME})*")


def fields_for(origins: Sequence[str], origin: str) -> Headers:
    """Returns the fields of a response to a page of this origin."""
    if not origins:
        return []
    anywhere = "*" in origins
    fields = [] if anywhere else [("Vary", "Origin")]
    if anywhere or origin in origins:
        fields += [
            (_ALLOWED, "*" if anywhere else origin),
            ("Access-Control-Expose-Headers", _EXPOSED),
        ]
    return fields


def with_cors(application: WSGIApplication, origins: Sequence[str]) -> WSGIApplication:
    """Returns the application with the fields in every response. Without origins it is unchanged."""
    if not origins:
        return application

    def outermost(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "").startswith(_NEVER):
            return application(environ, start_response)
        fields = fields_for(origins, environ.get("HTTP_ORIGIN", ""))
        allowed = any(name == _ALLOWED for name, _ in fields)

        def start(status: str, headers: Headers, exc_info: Any = None, /) -> Any:
            headers = [field for field in headers if not field[0].lower().startswith(_PREFIX)]
            headers += fields
            if allowed and is_preflight(environ) and status.startswith("2"):
                headers += _permissions(environ, headers)
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        return application(environ, start)

    return outermost


def is_preflight(environ: WSGIEnvironment) -> bool:
    """Whether a browser asks what a page may send."""
    return environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ


def _permissions(environ: WSGIEnvironment, headers: Headers) -> Headers:
    """Returns what a preflight asks for: the methods of the path, and the header fields that the page wants to send.

    They are named, because a star would not stand for Authorization.
    """
    methods = next((value for name, value in headers if name.lower() == "allow"), "")
    fields = [("Access-Control-Allow-Methods", methods), ("Access-Control-Max-Age", str(_MAX_AGE_S))]
    wanted = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
    if _NAMES.fullmatch(wanted):
        fields.append(("Access-Control-Allow-Headers", wanted))
    return fields
