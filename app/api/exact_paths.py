"""Falcon's router, but a path means one thing only.

Falcon takes `//metrics` and `metrics` for `/metrics`, and the server decodes `%2F` and `%6d`. A proxy in front that
forbids `/metrics` compares paths in its own way, and would let `//metrics` and `/%6detrics` pass. So these lead
nowhere:
- a path that does not begin with a slash: a target of CONNECT, or what SCRIPT_NAME=/x leaves of `/xmetrics`;
- a path with an empty segment, or with `.` or `..` as a segment;
- a path with an escape outside of the name of a model. No other part of a path needs one: all are of letters, digits,
  `.`, `-` and `_`, which are unreserved (RFC 3986 section 2.3).

The id of a request, which clients choose, is the exception: all that follows `/admin/requests/` is one, whatever it is.
Nothing else is served below.
"""

import re
from collections.abc import Callable
from typing import Any

import falcon
from falcon.routing import CompiledRouter

_ODD_SEGMENT = re.compile(r"//|/\.\.?(?:/|\Z)")
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_BEFORE_ID = "/admin/requests/"
_UP_TO_NAME = re.compile(rf"\A(?:(?:/v1/models|{_BEFORE_ID[:-1]})/.*+|/v2/models/(?:[^/%]|%(?!2[Ff]))*+)")
"""The beginning of a path up to the end of an id, or of a model's name, in which clients may escape what they like.
Under /v1 the name is all that follows, and its slashes may be escaped. Under /v2 it is one segment, without a slash."""


class ExactRouter(CompiledRouter):
    """See the module's opening lines."""

    def __init__(self, find_other: Callable[[str], Any]) -> None:
        """`find_other` returns the route of a path that none was added for, or None, as `find` does."""
        super().__init__()
        self._find_other = find_other

    def find(self, uri: str, req: falcon.Request | None = None) -> Any:
        """Returns the route of this path, or None."""
        if not uri.startswith("/"):
            return None
        if ("//" in uri or "/." in uri) and _ODD_SEGMENT.search(uri) and not uri.startswith(_BEFORE_ID):
            return None
        target = "" if req is None else req.env.get("RAW_URI", "")
        path = _path_of(target) if "%" in target else ""
        if "%" in path and "%" in _UP_TO_NAME.sub("", path, count=1):
            return None
        found = super().find(uri, req) or self._find_other(uri)
        if "%" in path and found is not None and "{" not in (found[3] or ""):
            return None  # /v2/models/stats has no name of a model in it
        return found


def _path_of(target: str) -> str:
    """Returns the path of this request target, as it is written."""
    path = target.partition("?")[0]
    return path if path.startswith("/") else _AUTHORITY.sub("", path, count=1)
