"""All sources, followed by the worker that leads: each has a greenlet, and what they find is published together.

**Leadership may move.** A worker that leads follows every source anew, and publishes nothing of one before it has a
result of its own; until then what the last leader published stays. A worker that was stopped may believe for a moment
that it still leads, and publish what is old. So the leader compares what is published with what it found every second,
and publishes again where the two differ; and a worker that has not been told for `_TERM_S` that it leads publishes
nothing.
"""

from collections.abc import Callable, Mapping

import gevent
import structlog
from gevent import Greenlet

from app.config.discovered import Source
from app.discovery import dns_source
from app.discovery.api_server import ApiServer
from app.discovery.findings import DiscoveryFailed, Findings
from app.discovery.kubernetes import ServiceWatch
from app.errors import RoutesError
from app.native import monotonic

_GATHER_S = 0.05
"""Changes are published so long after the first of them: a rollout is a burst of events."""
_TERM_S = 3.0

Sets = Mapping[str, tuple[str, ...]]

_log = structlog.get_logger("router.discovery")


class Discovery:
    """What one worker finds while it leads."""

    def __init__(
        self, publish: Callable[[Sets], Sets], api: ApiServer | None, count: Callable[[str, str], object]
    ) -> None:
        """`publish` takes sets by key and returns those that are current. `count` takes a key, and ok or failed."""
        self._publish = publish
        self._api = api
        self._count = count
        self._greenlets: dict[str, Greenlet[..., None]] = {}
        self._found: dict[str, tuple[str, ...]] = {}
        self._flusher: Greenlet[..., None] | None = None
        self._led_at = 0.0
        self._refused = ""

    def run(self, sources: Mapping[str, Source], published: Sets) -> None:
        """Follow these sources and no others. The leader calls this every second, with what is published."""
        self._led_at = monotonic()
        for key in self._greenlets.keys() - sources.keys():
            self._forget(key)
        for key, source in sources.items():
            greenlet = self._greenlets.get(key)
            if greenlet is None or greenlet.dead:
                self._greenlets[key] = gevent.spawn(self._follow, key, source, published.get(key, ()))
        if any(published.get(key) != urls for key, urls in self._found.items()):
            self._flush()

    def stop(self) -> None:
        """Follow nothing any more: another worker leads."""
        for key in list(self._greenlets):
            self._forget(key)

    def _forget(self, key: str) -> None:
        self._greenlets.pop(key).kill(block=False)
        self._found.pop(key, None)

    def _follow(self, key: str, source: Source, last: tuple[str, ...]) -> None:
        findings = Findings(key, lambda urls: self._take(key, urls), self._count)
        if source.kind == "dns":
            dns_source.follow(source, last, findings)
        elif self._api is not None:
            ServiceWatch(source, self._api, findings).follow()
        else:
            while True:
                findings.failed(DiscoveryFailed("KUBERNETES_SERVICE_HOST is not set: the router runs in no pod"))
                gevent.sleep(dns_source.CEILING_S)

    def _take(self, key: str, urls: tuple[str, ...]) -> None:
        if self._found.get(key) == urls:
            return
        self._found[key] = urls
        if self._flusher is None or self._flusher.dead:
            self._flusher = gevent.spawn_later(_GATHER_S, self._flush)

    def _flush(self) -> None:
        """Publish what was found, unless another worker may lead by now."""
        if monotonic() - self._led_at > _TERM_S:
            return
        found = dict(self._found)
        try:
            current = self._publish(found)
            missing = sum(len(set(urls) - set(current.get(key, ()))) for key, urls in found.items())
            refused = f"{missing} endpoints are left out: all counters are in use" if missing else ""
        except RoutesError as error:
            refused = str(error)
        if refused and not self._refused:
            _log.warning("not all discovered endpoints are published; trying again", reason=refused)
        self._refused = refused
