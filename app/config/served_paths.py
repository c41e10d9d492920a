"""Which paths the router serves, whatever the routes say. A model can't list one of them as its own."""

import re

from app.protocols import infer, v2
from app.protocols.adapters import PROTOCOLS

_OWN = (
    *("/healthz", "/readyz", "/metrics", "/openapi.json", infer.ROUTE, "/v1/models", "/v1/models/{name:path}"),
    *("/", "/admin/{rest:path}"),
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index", *v2.READY_TEMPLATES),
)
"""What is no operation of a protocol (api/application.py)."""
_OPERATIONS = (
    template for adapter in PROTOCOLS for operation in adapter.operations for template in operation.templates
)


def _pattern(template: str) -> str:
    """Returns the regular expression of the paths that a URI template matches."""
    parts = re.split(r"(\{[^}]*\})", template)
    return "".join(".*" if part.endswith(":path}") else "[^/]*" if "{" in part else re.escape(part) for part in parts)


is_served = re.compile("|".join(map(_pattern, (*_OWN, *_OPERATIONS)))).fullmatch
"""Takes a path; returns what is truthy if the router serves it."""
