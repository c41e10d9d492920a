"""Publishing the routes: at the start, on HUP, and when their file changes. Invalid routes never replace valid ones."""

import msgspec
import structlog

from app.config.routes_source import RoutesSource, names_in
from app.errors import RouterError
from app.observability.metrics import Metrics
from app.routing.route_store import RouteStore

_log = structlog.get_logger("router.routes")


class Publisher:
    """Reads the source and publishes what it says."""

    def __init__(self, source: RoutesSource, store: RouteStore, metrics: Metrics) -> None:
        self._source = source
        self._store = store
        self._reloads = metrics.reloads

    def publish(self) -> bool:
        """Publish what the source says. Returns whether that differs from what was current. Raises RoutesError."""
        document = self._source.load()
        return self._store.publish(msgspec.json.encode(document), names_in(document.routes))

    def republish(self) -> None:
        """Publish while the server runs. If the source is invalid, log that and keep the current routes."""
        try:
            changed = self.publish()
        except RouterError as error:
            self._store.stale[0] = 1
            self._reloads["refused"].inc()
            _log.error("routes refused; the old ones stay", reason=str(error))
            return
        if changed or self._store.stale[0]:  # also when the source is again what it was before it became invalid
            self._store.stale[0] = 0
            self._reloads["ok"].inc()
            _log.info("routes published", generation=self._store.generation)

    def republish_if_changed(self) -> None:
        """Publish again if the source has changed."""
        if self._source.changed():
            self.republish()
