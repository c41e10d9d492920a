"""The fields that every request to an endpoint has: Host, and its credential if it has one.

They are made once, when models are built, and replaced in place when the credential has changed. So a request that
waits meanwhile is sent with the new one, and no request reads a file or compares anything.
"""

from urllib.parse import urlsplit

import structlog

from app.config import route_schema
from app.config.credentials import Credentials, Reference, reference_of
from app.config.routes_source import credential_holders, name_of
from app.routing.endpoint import Endpoint

_log = structlog.get_logger("router.endpoints")


class EndpointHeads:
    """The heads of all endpoints, in one process."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._noted: route_schema.Routes | None = None
        """The routes that `note` was called with last."""
        self._references: tuple[Reference, ...] = ()
        self._made: list[tuple[route_schema.Endpoint, str, Endpoint]] = []
        """What was made with the head of an endpoint that has a credential, and the fields after that head."""
        self._lacking: frozenset[Reference] = frozenset()
        """The credentials that could not be read when models were built, and never before."""

    def note(self, routes: route_schema.Routes) -> None:
        """Read the credentials of these routes, of which no models are built here (inherited.py)."""
        if routes is not self._noted:
            self._noted = routes
            self._references = tuple(_holders(routes))
        self._renew()

    def begin(self, routes: route_schema.Routes) -> None:
        """Read the credentials of these routes, of which models are built now in place of those before."""
        names = _holders(routes)
        self._references = tuple(names)
        self._renew()
        self._made = []
        before = self._lacking
        self._lacking = frozenset(one for one in names if self._credentials.value(one) is None)
        for reference in self._lacking - before:
            reason = self._credentials.error(reference)
            _log.error("this worker sends no request to endpoints", endpoints=names[reference], reason=reason)

    def usable(self, version: route_schema.Version) -> tuple[route_schema.Endpoint, ...]:
        """Returns the endpoints of a version that requests can be sent to: never without its credential."""
        return tuple(endpoint for endpoint in version.endpoints if reference_of(endpoint) not in self._lacking)

    def head(self, endpoint: route_schema.Endpoint) -> str:
        """Returns the fields for an endpoint that is usable."""
        lines = f"host: {urlsplit(endpoint.url).netloc}\r\n"
        reference = reference_of(endpoint)
        if reference is not None:
            lines += f"authorization: Bearer {self._credentials.value(reference)}\r\n"
        return lines

    def made(self, endpoint: route_schema.Endpoint, asks: str, made: Endpoint) -> Endpoint:
        """Returns what was made with the head of an endpoint and these fields after it; keeps it to renew the head."""
        if reference_of(endpoint) is not None:
            self._made.append((endpoint, asks, made))
        return made

    def renew(self) -> tuple[list[str], bool]:
        """Read the credentials again that have changed, and have requests sent with them from now on.

        Returns where those are, in words, and whether an endpoint is usable now that models were built without.
        """
        changed = sorted(map(str, self._renew()))
        return changed, any(self._credentials.value(one) is not None for one in self._lacking)

    def _renew(self) -> frozenset[Reference]:
        # Nothing yields from the reading to the last head: no other greenlet sees the one without the other.
        changed = frozenset(self._credentials.renew(self._references))
        for endpoint, asks, made in self._made if changed else ():
            if reference_of(endpoint) in changed:
                made.renew_head(self.head(endpoint) + asks)
        return changed


def _holders(routes: route_schema.Routes) -> dict[Reference, list[str]]:
    """Returns the names of the endpoints, and of the versions that find theirs, by where their credential is."""
    names: dict[Reference, list[str]] = {}
    for holder in credential_holders(routes):
        reference = reference_of(holder)
        if reference is not None:
            names.setdefault(reference, []).append(name_of(holder))
    return names
