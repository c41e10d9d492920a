"""Falcon's router, but a path means one thing only.

Falcon takes `//metrics` for `/metrics`, and the server decodes `%2F`. A proxy in front that forbids `/metrics` compares
paths in its own way, and would let both pass. So a path with an empty segment, with `.` or `..` as a segment, or with
an escaped slash leads nowhere.
"""

import re
from typing import Any

import falcon
from falcon.routing import CompiledRouter

_ODD_SEGMENT = re.compile(r"//|/\.\.?(?:/|\Z)")
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_MAY_HOLD_SLASHES = "/v1/models/"
"""What follows is the name of a model, in which clients may escape slashes."""


class ExactRouter(CompiledRouter):
    """See the module's opening lines."""

    def find(self, uri: str, req: falcon.Request | None = None) -> Any:
        """Returns the route of this path, or None."""
        if ("//" in uri or "/." in uri) and _ODD_SEGMENT.search(uri):
            return None
        if req is not None and "%" in (target := req.env.get("RAW_URI", "")) and _has_escaped_slash(target):
            return None
        return super().find(uri, req)


def _has_escaped_slash(target: str) -> bool:
    """Whether the path of this request target has an escaped slash, the names of models left out."""
    path = target.partition("?")[0]
    if not path.startswith("/"):
        path = _AUTHORITY.sub("", path, count=1)
    return "%2f" in path.lower() and not path.startswith(_MAY_HOLD_SLASHES)
