"""On which listener the admin API may be used, and for which pages: this is the one place that says so.

ADMIN_KEY_SHA256 is checked before, for all paths of operators at once (authentication.py).

It is served on the admin listener only, so there is none without ADMIN_BIND: what drains an endpoint must not be open
to every client. Browsers are kept from using it for a page of another origin: a page can't read a response without a
permission, which `cors.py` gives to no path below /admin, and a request that changes something must be of the type
application/json, which needs such a permission (the Fetch standard, section 3.3.3).

All of that is of no use against a page whose own name leads to the router: its owner lets the name point to another
address once the page is loaded (DNS rebinding), and to the browser the router is the page's own origin then. So without
a key, which no such page has, the Host must be one that nobody else can let point here: an address, or a name below
none of the public domains.
"""

from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

import falcon

from app.config.settings import Settings

_NOT_PUBLIC = ("localhost", "local", "internal", "svc")
"""The last labels of names that no public domain has: RFC 6761 section 6.3, RFC 6762 section 3, ICANN's reservation of
`internal`, and the short names of Kubernetes, whose full names are mostly below `local`."""
NOT_HERE = "the admin API is served on the admin listener only, at the address ADMIN_BIND"

_QUOTED_CHARS = 100


class AdminAccess(NamedTuple):
    """Decides about the requests to one router."""

    port: str | None
    """That of the admin listener, None without one."""
    needs_key: bool
    """Whether every request to the admin API has a key."""

    def check(self, req: falcon.Request) -> None:
        """Raises HTTPNotFound for a request that did not come by the admin listener.

        Raises HTTPForbidden for one by a name that may be a stranger's.
        """
        if self.port is None or req.env["SERVER_PORT"] != self.port:
            raise falcon.HTTPNotFound(description=NOT_HERE)
        host = req.get_header("Host") or ""
        if not self.needs_key and not is_own_name(host):
            raise falcon.HTTPForbidden(
                description=f"a page of any site could ask by the name {host[:_QUOTED_CHARS]!r}: use the address, "
                "localhost or a name of the cluster, or set ADMIN_KEY_SHA256"
            )

    def check_change(self, req: falcon.Request) -> None:
        """Raises the same, or HTTPUnsupportedMediaType or HTTPForbidden for what a page of another origin may send."""
        self.check(req)
        if (req.content_type or "").partition(";")[0].strip().lower() != falcon.MEDIA_JSON:
            raise falcon.HTTPUnsupportedMediaType(description="send the header Content-Type: application/json")
        origin = req.get_header("Origin")
        if origin is not None and origin.partition("://")[2] != req.get_header("Host"):  # it may be no URL at all
            raise falcon.HTTPForbidden(description="a page of another origin may change nothing")


def access_to(settings: Settings) -> AdminAccess:
    """Returns what decides in a router with these settings."""
    return AdminAccess(settings.admin_port, bool(settings.admin_key_sha256))


def is_own_name(host: str) -> bool:
    """Whether no public domain can be meant by the value of a Host header. An absent one, of HTTP/1.0, is no name."""
    name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    first, _, last = name.rpartition(".")
    if not first or last in _NOT_PUBLIC:
        return True  # a name of one label is looked up in the domains of the client's own network
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
