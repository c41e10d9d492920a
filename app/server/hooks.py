"""gunicorn's hooks: they tie workers to their slots, and pass signals on to the router.

gunicorn.conf.py wires the methods that have gunicorn's names. gunicorn calls `when_ready`, `on_reload`, `pre_fork`,
`child_exit` and `on_exit` in the arbiter, `post_fork` and `post_worker_init` in the worker, and `pre_exec` in the
process that becomes the next binary.
"""

import atexit
import contextlib
import gc
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import structlog
from gunicorn.arbiter import Arbiter

from app.api import cors
from app.bootstrap import Router
from app.compiled import form
from app.errors import NoFreeSlot
from app.observability import logs
from app.server import stop_signals
from app.server.start_lines import start_lines
from app.server.upkeep import Upkeep, log_reclaimed
from app.server.worker import RouterWorker
from app.server.worker_context import WorkerContext
from app.shared_memory.slots import Claim, is_alive

_NO_SLOT_PAUSE_S = 1.0
_COLLECT_AFTER = 20_000
"""How many objects more than were freed start the collector. A request leaves no cycles, but makes some 100 objects:
with 700, the default, those of all requests in progress are traversed again and again."""
_FLUSH_S = 5.0

_log = structlog.get_logger("router.lifecycle")


class Hooks:
    """The hooks of one server."""

    def __init__(self, router: Router, inherit_as: str) -> None:
        """`inherit_as` is the environment variable that hands the shared state to the next binary."""
        self._router = router
        self._inherit_as = inherit_as
        self._upkeep = Upkeep(router)
        self._claims: dict[RouterWorker, Claim] = {}
        self._started = False
        atexit.register(self._leave_unused, os.getpid())
        os.register_at_fork(after_in_parent=stop_signals.let_through)

    def when_ready(self, arbiter: Arbiter) -> None:
        """Log what is served, and make SIGTERM begin the drain before gunicorn signals the workers."""
        self._started = True
        # What was made by now stays. Frozen, it is never traversed again, and its pages stay shared with the workers.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
        router, settings = self._router, self._router.settings
        self._log_ready()
        self._upkeep.log_unused(always=True)
        for endpoint in settings.kv_endpoints_masked:
            _log.info("KV endpoint", endpoint=endpoint)
        gunicorns_handler = signal.getsignal(signal.SIGTERM)
        assert callable(gunicorns_handler)

        def on_term(number: int, frame: FrameType | None) -> None:
            if os.getpid() == arbiter.pid:  # a process that was just forked still has this handler
                router.drain.begin()
            gunicorns_handler(number, frame)

        signal.signal(signal.SIGTERM, on_term)
        self._look_every_second(arbiter)

    def _look_every_second(self, arbiter: Arbiter) -> None:
        """Give the arbiter a step more every second. gunicorn has no hook for that, so it follows one of its own."""
        murder_workers = arbiter.murder_workers

        def with_upkeep() -> None:
            murder_workers()
            self._upkeep.in_arbiter()

        arbiter.murder_workers = with_upkeep

    def _log_ready(self) -> None:
        """Say what is served, in one event for machines or three lines for people, and what is open to everyone."""
        self._log_served()
        if self._router.auth.authenticator is None:
            _log.warning("authentication is off: whoever reaches the router may use every model; see docs/security.md")
        elif not self._router.settings.admin_key_sha256:
            _log.warning("ADMIN_KEY_SHA256 is not set: whoever reaches /metrics and the admin pages may use them")

    def _log_served(self) -> None:
        router, settings = self._router, self._router.settings
        models = router.models.registry.names()
        if settings.log_format == "console" and sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it
                sys.stderr.write("\n".join((*start_lines(settings, models), "")))
            return
        _log.info(
            "router ready",
            form=form(),
            models=models,
            max_concurrency=router.limiter.limit,
            queue_size=settings.queue_size,
            workers=settings.web_concurrency,
            bind=settings.binds,
        )

    def on_reload(self, arbiter: Arbiter) -> None:
        """Read the routes again on HUP, before the workers are replaced."""
        self._router.models.publisher.republish()
        self._router.auth.republish()
        self._upkeep.log_unused()

    def pre_fork(self, arbiter: Arbiter, worker: RouterWorker) -> None:
        """Claim a slot for the worker that is about to be forked."""
        self._reclaim_forgotten()
        self._upkeep.in_arbiter()
        try:
            claim = self._claims[worker] = self._router.slots.claim()
            self._router.drain.mark(claim.slot)
        except NoFreeSlot as error:
            _log.error("worker can't start", reason=str(error))
        stop_signals.hold_back()  # last: nothing between this and the fork raises

    def _reclaim_forgotten(self) -> None:
        """Reclaim the slots of workers that died without `child_exit`, those that never ran included."""
        slots = self._router.slots
        slots.reclaim_dead()
        for worker in [worker for worker in self._claims if not is_alive(worker.pid)]:
            slots.reclaim(self._claims.pop(worker))

    def post_fork(self, arbiter: Arbiter, worker: RouterWorker) -> None:
        """Occupy the slot and give the worker its context. Exits if there is no slot; the arbiter then forks again."""
        router, settings = self._router, self._router.settings
        claim = self._claims.get(worker)
        if claim is None:
            time.sleep(_NO_SLOT_PAUSE_S)  # so that the arbiter does not fork as fast as it can
            sys.exit(1)  # not gunicorn's WORKER_BOOT_ERROR, which would stop the whole server
        if not router.slots.occupy(claim):
            sys.exit(1)  # the arbiter died meanwhile, and another process reclaimed its slots
        router.drain.attach(claim.slot)
        router.counters.attach(claim.slot)
        router.traffic.attach(claim.slot)
        router.auth.counters.attach(claim.slot)
        router.connection_counts.attach(claim.slot)
        router.ring.attach(claim.slot)
        router.metric_files.attach(claim.slot)
        worker.enter(
            WorkerContext(
                server_drains=lambda: router.drain.begun,
                connection_counts=router.connection_counts,
                upkeep=self._upkeep.run,
                before_exit=self._before_exit,
                graceful_timeout_s=float(settings.graceful_timeout_s),
                stall_timeout_s=float(settings.stall_timeout_s),
                upload_timeout_s=float(settings.upload_timeout_s),
                script_name=router.script_name,
                tls_at=self._tls_at,
                count_handshake=router.metrics.tls.count_handshake,
                log_handshake=logs.handshakes_logger(settings),
                log_malformed=logs.malformed_requests_logger(settings),
                cross_origin_fields=partial(cors.fields_for, settings.cors_origins),
            )
        )

    def post_worker_init(self, worker: RouterWorker) -> None:
        """Attach the limiter, which listens on the event loop that the worker has just got. It can stop from now on."""
        self._router.limiter.attach(self._claims[worker].slot)
        self._router.live.attach(lambda: not worker.alive or self._router.drain.begun)
        if self._router.tracing is not None:
            self._router.tracing.start()
        stop_signals.let_through()

    def _tls_at(self, address: Any) -> Callable[[], ssl.SSLContext] | None:
        """See WorkerContext. The admin listener has none: probes and scrapes come from within the cluster."""
        tls, admin_port = self._router.tls, self._router.settings.admin_port
        if tls is None or (isinstance(address, tuple) and str(address[1]) == admin_port):
            return None
        return lambda: tls.current

    def _before_exit(self, seconds: float) -> None:
        """Count and export what the last requests left. gunicorn kills a worker that sends no heartbeat for 30 s."""
        self._router.metrics.token_metrics.count_pending()
        if self._router.tracing is not None:
            self._router.tracing.stop(min(seconds, _FLUSH_S))

    def child_exit(self, arbiter: Arbiter, worker: RouterWorker) -> None:
        """Reclaim the slot of a worker that was reaped, however it died."""
        claim = self._claims.pop(worker, None)
        if claim is not None:
            log_reclaimed(self._router.slots.reclaim(claim))

    def pre_exec(self, arbiter: Arbiter) -> None:
        """Hand the shared state to the next binary (USR2)."""
        arbiter.cfg.env_orig[self._inherit_as] = self._router.handover()

    def on_exit(self, arbiter: Arbiter) -> None:
        """Remove the metrics directory, unless the other binary of an upgrade still uses it."""
        self._router.metrics_directory.leave()

    def _leave_unused(self, maker: int) -> None:
        """Remove the metrics directory of a program that never served (`gunicorn --check-config`, a failed start)."""
        if os.getpid() == maker and not self._started:
            self._router.metrics_directory.leave()
