"""Publishing the routes: at the start, on HUP, when their file changes, and when discovery finds other endpoints.

Invalid routes never replace valid ones. The arbiter and the leader may publish at the same time. So each notes which
publication is current before it reads the source, makes its own from that one, and begins again if another is current
by then (`Superseded`): what one of them found or read is never undone by the slower one.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import msgspec
import structlog

from app.config.discovered import expanded, sources_in, with_found
from app.config.routes_source import Document, RoutesSource, names_in
from app.errors import RouterError, RoutesError
from app.observability.metrics import Metrics
from app.routing.route_store import RouteStore, Superseded

_log = structlog.get_logger("router.routes")


class Publisher:
    """Reads the source and publishes what it says."""

    def __init__(self, source: RoutesSource, store: RouteStore, metrics: Metrics) -> None:
        self._source = source
        self._store = store
        self._reloads = metrics.reloads

    def publish(self) -> bool:
        """Publish what the source says. Returns whether that differs from what was current. Raises RoutesError."""
        return self._publish(lambda before: with_found(self._source.load(), before.found if before else {}))

    def publish_found(self, found: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        """Publish what discovery found, by the keys of the sources. Returns what is current of it now.

        That is less where there are too few counters: an id is free only some time after its endpoint has gone. So
        those that stay and as many others as there is room for are published; the caller tries again. Raises
        RoutesError if not even those fit that stay.
        """
        try:
            self._publish(partial(_merged, found=found, most=None))
        except RoutesError as error:
            self._publish_part(found, error)
        content = self._store.read()[1]
        return msgspec.json.decode(content, type=Document).found

    def _publish_part(self, found: Mapping[str, tuple[str, ...]], error: RoutesError) -> None:
        for most in _halves(max(map(len, found.values()), default=0)):
            try:
                self._publish(partial(_merged, found=found, most=most))
            except RoutesError:
                continue
            return
        raise error

    def _publish(self, change: Callable[[Document | None], Document]) -> bool:
        """Publish what `change` makes of the current document, None before the first. Returns whether it differs."""
        while True:
            generation, content = self._store.read()
            document = change(msgspec.json.decode(content, type=Document) if content else None)
            names = names_in(expanded(document).routes)
            try:
                return self._store.publish(msgspec.json.encode(document), names, generation)
            except Superseded:
                continue

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


def _merged(before: Document | None, found: Mapping[str, tuple[str, ...]], most: int | None) -> Document:
    """Returns the document with these sets in place of the ones it has, each with at most so many new endpoints."""
    assert before is not None, "discovery begins after the first publication"
    sets = {key: found[key] for key in sources_in(before.routes) if key in found}
    if most is not None:
        sets = {key: _some(before.found.get(key, ()), urls, most) for key, urls in sets.items()}
    return with_found(before, {**before.found, **sets})


def _some(old: tuple[str, ...], new: tuple[str, ...], most: int) -> tuple[str, ...]:
    known = set(old)
    some = [*known.intersection(new), *[url for url in new if url not in known][:most]]
    return tuple(sorted(some)) if some or not new else old  # no set is emptied for want of room


def _halves(most: int) -> Iterator[int]:
    while most:
        most //= 2
        yield most
