"""On which listener the admin API may be used, and for which pages: this is the one place that says so.

ADMIN_KEY_SHA256 is checked before, for all paths of operators at once (authentication.py).

It is served on the admin listener only, so there is none without ADMIN_BIND: what drains an endpoint must not be open
to every client. Browsers are kept from using it for a page of another origin: a page can't read a response without a
permission, which `cors.py` gives to no path below /admin, and a request that changes something must be of the type
application/json, which needs such a permission (the Fetch standard, section 3.3.3).
"""

from typing import NamedTuple
from urllib.parse import urlsplit

import falcon

NOT_HERE = "the admin API is served on the admin listener only, at the address ADMIN_BIND"


class AdminAccess(NamedTuple):
    """Decides about the requests to one router."""

    port: str | None
    """That of the admin listener, None without one."""

    def check(self, req: falcon.Request) -> None:
        """Raises HTTPNotFound for a request that did not come by the admin listener."""
        if self.port is None or req.env["SERVER_PORT"] != self.port:
            raise falcon.HTTPNotFound(description=NOT_HERE)

    def check_change(self, req: falcon.Request) -> None:
        """Raises the same, or HTTPUnsupportedMediaType or HTTPForbidden for what a page of another origin may send."""
        self.check(req)
        if (req.content_type or "").partition(";")[0].strip().lower() != falcon.MEDIA_JSON:
            raise falcon.HTTPUnsupportedMediaType(description="send the header Content-Type: application/json")
        origin = req.get_header("Origin")
        if origin is not None and urlsplit(origin).netloc != req.get_header("Host"):
            raise falcon.HTTPForbidden(description="a page of another origin may change nothing")
