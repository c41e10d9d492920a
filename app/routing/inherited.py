"""What a forked worker begins with: the credentials and the files of TLS that the published routes only name.

The arbiter reads these every second, as workers do. A worker that is forked while a file is gone or broken has what the
arbiter read last. The arbiter takes no lock for that and builds no models: a worker that is stopped while it holds the
lock must not stop the arbiter, which ends such workers.
"""

import msgspec

from app.config import route_schema
from app.config.routes_source import Document
from app.net.tls_files import TlsContext
from app.routing.endpoint_connections import tls_contexts_of
from app.routing.endpoint_heads import EndpointHeads
from app.routing.route_store import RouteStore


class Inherited:
    """What the arbiter has read."""

    def __init__(self, store: RouteStore, heads: EndpointHeads) -> None:
        self._store = store
        self._heads = heads
        self._generation = 0
        self._routes = route_schema.Routes(models=())
        """Those of the generation, without what discovery has found."""

    def read_credentials(self) -> None:
        """Read the credentials that are new or have changed."""
        self._heads.note(self._published())

    def tls_contexts(self) -> list[TlsContext]:
        """Returns the contexts of the endpoints' TLS, made now of files that are new."""
        return tls_contexts_of(self._published())

    def _published(self) -> route_schema.Routes:
        generation = self._store.generation
        if generation != self._generation:
            # What is published between the two is read now, and once more the next time.
            self._routes = msgspec.json.decode(self._store.peek(), type=Document).routes
            self._generation = generation
        return self._routes
