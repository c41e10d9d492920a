"""Publishing the routes: at the start, on HUP, and when their file changes. Bad ones never replace good ones."""

import msgspec
import structlog

from app.config.routes_source import RoutesSource, names_in
from app.errors import RouterError
from app.observability.metrics import Metrics
from app.routing.route_store import RouteStore

_log = structlog.get_logger("router.routes")


class Publisher:
    """Reads the source and publishes what it says."""

    def __init__(self, source: RoutesSource, publication: RouteStore, metrics: Metrics) -> None:
        self._source = source
        self._publication = publication
        self._reloads = metrics.reloads

    def publish(self) -> bool:
        """Have every worker serve what the source says; answers whether that is news. Raises RoutesError."""
        document = self._source.load()
        return self._publication.publish(msgspec.json.encode(document), names_in(document.routes))

    def republish(self) -> None:
        """The same while the server runs: if the source is invalid, say so and go on with what is served."""
        try:
            news = self.publish()
        except RouterError as error:
            self._publication.refused[0] = 1
            self._reloads["refused"].inc()
            _log.error("routes refused; the old ones stay", reason=str(error))
            return
        if news or self._publication.refused[0]:  # also when the routes that stayed are there again
            self._publication.refused[0] = 0
            self._reloads["ok"].inc()
            _log.info("routes published", generation=self._publication.generation)

    def republish_if_changed(self) -> None:
        """The same, if the source has changed."""
        if self._source.changed():
            self.republish()
