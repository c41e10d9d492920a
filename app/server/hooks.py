"""From start to exit: what is made before the workers fork, and gunicorn's hooks, which tie workers to their slots.

The hooks named as gunicorn names them are wired in gunicorn.conf.py. Those with `arbiter` run in the arbiter, those
that say so in the worker.
"""

import atexit
import gc
import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import structlog

from app.admission.limiter import Limiter
from app.bootstrap import shared_table
from app.config.routes_source import RoutesSource
from app.config.settings import Settings
from app.errors import NoFreeSlot
from app.observability.metrics import Metrics, keep_files_per_slot
from app.observability.metrics_directory import open_directory
from app.routing.endpoint_pool import Shared
from app.routing.health_checks import HealthChecks
from app.routing.outlier_detection import OutlierDetector
from app.routing.publisher import Publisher
from app.routing.registry import ModelRegistry
from app.routing.route_store import RouteStore
from app.shared_memory.counters import InflightCounters
from app.shared_memory.drain import Drain
from app.shared_memory.leader import Leader
from app.shared_memory.slots import Slots, alive

_SLOTLESS_PAUSE_S = 1.0

_log = structlog.get_logger("router.lifecycle")


class Hooks:
    """The shared parts of one server, and its hooks."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], inherit_as: str, inherited: str | None) -> None:
        """`environ` is where credentials of endpoints are looked up.

        `inherited` is what `pre_exec` of the program before this one put in the variable `inherit_as`.
        """
        self._settings = settings
        self._inherit_as = inherit_as
        table, _, directory = (inherited or "").partition(";")
        self._table = shared_table(settings.max_concurrency, settings.queue_size, table or None)
        self._slot: int | None = None
        self._forked: list[Any] = []
        self._started = False
        self.slots = Slots(self._table, settings.max_concurrency, settings.queue_size)
        self.limiter = Limiter(
            self._table, settings.max_concurrency, settings.queue_size, settings.queue_timeout_ms / 1000
        )
        self.drain = Drain(self._table)
        self._directory = open_directory(settings.prometheus_multiproc_dir, directory or None)
        atexit.register(self._leave_unused, os.getpid())
        keep_files_per_slot(self._directory.path, lambda: "arbiter" if self._slot is None else self._slot)
        self.metrics = Metrics(self.limiter, self.slots, self._directory.path)
        self._usage = InflightCounters(self._table)
        states = OutlierDetector(self._table)
        publication = RouteStore(self._table, self._usage, states)
        self._publisher = Publisher(RoutesSource(settings, environ), publication, self.metrics)
        self._publisher.publish()
        shared = Shared(self._table, self._usage, states, self.metrics)
        self.catalogue = ModelRegistry(settings, publication, shared, self.limiter.retry_after)
        self._leader = Leader(self._table)
        self._checks = HealthChecks(self.catalogue, states)

    def when_ready(self, arbiter: Any) -> None:
        """Say what is served, and have SIGTERM announced in the shared table before the workers hear of it."""
        self._started = True
        # What was made by now stays. Frozen, it is never looked through again, and its pages stay shared with workers.
        gc.collect()
        gc.freeze()
        settings = self._settings
        _log.info(
            "router ready",
            models=self.catalogue.names(),
            max_concurrency=settings.max_concurrency,
            queue_size=settings.queue_size,
            workers=settings.web_concurrency,
            bind=settings.binds,
        )
        for endpoint in settings.kv_endpoints_masked:
            _log.info("KV endpoint", endpoint=endpoint)
        queue_signal = signal.getsignal(signal.SIGTERM)
        assert callable(queue_signal)

        def on_term(number: int, frame: FrameType | None) -> None:
            if os.getpid() == arbiter.pid:  # a worker just forked still has this handler
                self.drain.begin()
            queue_signal(number, frame)

        signal.signal(signal.SIGTERM, on_term)

    def on_reload(self, arbiter: Any) -> None:
        """HUP, before the workers are replaced: read the routes anew."""
        self._publisher.republish()

    def pre_fork(self, arbiter: Any, worker: Any) -> None:
        """Claim a slot for the worker about to be forked."""
        self._reclaim_forgotten()
        try:
            worker.claim = self.slots.claim()
            self.drain.mark(worker.claim.slot)
            self._forked.append(worker)
        except NoFreeSlot as error:
            worker.claim = None
            _log.error("worker can't start", reason=str(error))

    def _reclaim_forgotten(self) -> None:
        """Reclaim slots of workers that died without `child_exit`, those that had not yet occupied theirs included."""
        self.slots.reclaim_dead()
        dead = [worker for worker in self._forked if not alive(worker.pid)]
        for worker in dead:
            self._forked.remove(worker)
            self.slots.reclaim(worker.claim)

    def post_fork(self, arbiter: Any, worker: Any) -> None:
        """In the worker: take the slot, or exit if there is none (the arbiter tries again)."""
        if worker.claim is None:
            time.sleep(_SLOTLESS_PAUSE_S)  # so that the arbiter doesn't fork as fast as it can
            sys.exit(1)  # not gunicorn's WORKER_BOOT_ERROR, which would stop the whole server
        if not self.slots.occupy(worker.claim):
            sys.exit(1)  # the arbiter died meanwhile, and somebody took its slots back
        self._slot = worker.claim.slot
        self.drain.attach(worker.claim.slot)
        self._usage.attach(worker.claim.slot)
        worker.server_drains = lambda: self.drain.begun
        worker.upkeep = self._upkeep
        worker.stall_timeout_s = float(self._settings.stall_timeout_s)
        worker.upload_timeout_s = float(self._settings.upload_timeout_s)

    def post_worker_init(self, worker: Any) -> None:
        """In the worker, when its event loop is new: listen to the bell."""
        self.limiter.attach(worker.claim.slot)

    def _upkeep(self) -> None:
        """In the worker, every second: mend what a process that died left undone, and lead if nobody does."""
        _tell(self.slots.reclaim_dead())
        self.limiter.pick_up()
        self.catalogue.prune()
        if self._leader.leads():
            self._publisher.republish_if_changed()
            self._checks.run_due()

    def child_exit(self, arbiter: Any, worker: Any) -> None:
        """A worker was reaped, however it died: take back what it held."""
        if worker.claim is not None:
            _tell(self.slots.reclaim(worker.claim))

    def pre_exec(self, arbiter: Any) -> None:
        """In the process that becomes the next binary (USR2): let it inherit the table and the metrics directory."""
        arbiter.cfg.env_orig[self._inherit_as] = f"{self._table.handover()};{self._directory.path}"

    def on_exit(self, arbiter: Any) -> None:
        """Remove the metrics directory, unless the other binary of an upgrade still uses it."""
        self._directory.leave()

    def _leave_unused(self, maker: int) -> None:
        """At the end of a program that never became a server (`gunicorn --check-config`, a failed start)."""
        if os.getpid() == maker and not self._started:
            self._directory.leave()


def _tell(permits: int) -> None:
    if permits:
        _log.warning("permits reclaimed from a dead worker", permits=permits)
