"""What a worker does every second beside its requests: it recovers what dead processes left undone, and it leads if no
other worker does.

The steps read what model servers, name servers and other APIs sent. **A step that fails keeps neither the other steps
nor the requests of the worker from going on**: it is logged, at most once a minute, and tried again a second later.
"""

import time
from collections.abc import Callable

import structlog

from app.bootstrap import Router, tls_contexts
from app.server import tls_renewal

_LOGGED_EVERY_S = 60.0

_log = structlog.get_logger("router.lifecycle")


class Upkeep:
    """The upkeep of one process."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._leads = False
        self._logged_at: dict[str, float] = {}
        self._loads: object = None
        """How often files were read when it was last looked what of them has no effect."""

    def run(self) -> None:
        """Take every step once."""
        router = self._router
        self._step("reclaim permits", lambda: log_reclaimed(router.slots.reclaim_dead()))
        self._step("recover the queue", router.limiter.recover)
        self._step("reserve metrics files", router.metric_files.reserve_again)
        self._step("count tokens", router.metrics.token_metrics.count_pending)
        self._step("close idle connections", router.models.registry.prune)
        self._leads = False
        self._step("elect a leader", self._elect)
        self._step("renew certificates", self._renew_tls)
        self._step("read credentials", self._renew_credentials)
        if self._leads:
            self._lead()
        else:
            self._step("stop discovery", router.models.discovery.stop)

    def _renew_tls(self) -> None:
        """Read the files of certificates again that have changed. The leader counts it."""
        router = self._router
        contexts = tls_contexts(router.tls, router.models.registry)
        tls_renewal.renew(contexts, router.metrics.tls if self._leads else None)

    def log_unused(self, *, always: bool = False) -> None:
        """Warn of what has no effect in the files that were read since the last time."""
        router = self._router
        keys = router.auth.publisher
        loads = router.models.source.loads, keys and keys.loads
        if loads != self._loads or always:
            self._loads = loads
            router.log_unused(always=always)

    def _renew_credentials(self) -> None:
        """Read the credentials again that have changed. The leader says so, and counts it as it does for routes."""
        models = self._router.models
        changed = models.registry.renew_credentials()
        if changed and self._leads:
            _log.info("credentials read again", sources=changed)
            if not models.store.stale[0]:  # else the publisher counts it, once everything is valid
                self._router.metrics.reloads["ok"].inc()

    def in_arbiter(self) -> None:
        """Take the arbiter's steps, every second and before a fork: what it has read by then, the worker has."""
        router = self._router
        inherited = router.models.inherited
        self._step("renew certificates", lambda: tls_renewal.renew(tls_contexts(router.tls, inherited), None))
        self._step("read credentials", inherited.read_credentials)

    def _elect(self) -> None:
        self._leads = self._router.leader.leads()

    def _lead(self) -> None:
        router, models = self._router, self._router.models
        registry = models.registry
        self._step("publish routes", models.publisher.republish_if_changed)
        self._step("publish keys", router.auth.refresh)
        self._step("log what has no effect", self.log_unused)
        self._step("discover endpoints", lambda: models.discovery.run(registry.sources(), registry.found()))
        self._step("check endpoints", models.health_checks.run_due)
        self._step("scrape endpoints", models.load_scrapes.run_due)
        self._step("measure demand", lambda: router.demand.measure(registry.model_ids().values(), time.monotonic()))

    def _step(self, name: str, run: Callable[[], object]) -> None:
        try:
            run()
        except Exception:  # noqa: BLE001  # whatever it is, it is logged
            now = time.monotonic()
            if now - self._logged_at.get(name, -_LOGGED_EVERY_S) >= _LOGGED_EVERY_S:
                self._logged_at[name] = now
                _log.exception("upkeep failed", step=name)


def log_reclaimed(permits: int) -> None:
    """Say that permits were reclaimed, if any were."""
    if permits:
        _log.warning("permits reclaimed from a dead worker", permits=permits)
