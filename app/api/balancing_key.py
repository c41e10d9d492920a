"""The key of a request: what its model's balancing policy keeps together."""

from collections.abc import Sequence

import falcon

from app.config import route_schema
from app.routing import prefix_history

_PREFIX_HASH_BYTES = 256


def balancing_key(req: falcon.Request, route: route_schema.Model, prompt: Sequence[bytes | memoryview]) -> bytes:
    """Returns what the model's balancing policy keeps together."""
    if route.balancing == "prefix":
        return prefix_history.beginnings(prompt, route.prefix_bytes or prefix_history.DEFAULT_BYTES)
    if route.balancing == "prefix_hash":
        length = route.prefix_bytes or _PREFIX_HASH_BYTES
        return b",".join(part[:length] for part in prompt)[:length]
    if route.balancing == "session":
        header = req.get_header(route.session_header) if route.session_header else None
        cookies = req.get_cookie_values(route.session_cookie) if route.session_cookie and not header else None
        return (header or (cookies or [""])[0]).encode()
    return b""
