"""From start to exit: what is made before the workers fork, and gunicorn's hooks, which tie workers to their slots.

The hooks named as gunicorn names them are wired in gunicorn.conf.py. Those with `arbiter` run in the arbiter, those
that say so in the worker.
"""

import atexit
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import structlog

from app import drain, limiter, line, slots
from app.config import Settings
from app.drain import Drain
from app.errors import NoFreeSlot
from app.limiter import Limiter
from app.metrics import Metrics, keep_files_per_slot
from app.metrics_directory import open_directory
from app.shared import SharedTable
from app.slots import Slots

_SLOTLESS_PAUSE_S = 1.0

_log = structlog.get_logger("router.lifecycle")


class Lifecycle:
    """The shared parts of one server, and its hooks."""

    def __init__(self, settings: Settings, inherit_as: str, inherited: str | None) -> None:
        """`inherited` is what `pre_exec` of the program before this one put in the variable `inherit_as`."""
        self._settings = settings
        self._inherit_as = inherit_as
        table, _, directory = (inherited or "").partition(";")
        self._table = SharedTable(
            (*limiter.COLUMNS, *slots.COLUMNS, *drain.COLUMNS),
            (*limiter.CELLS, *slots.CELLS),
            line.array_words(settings.queue_size),
            identity=f"MAX_CONCURRENCY={settings.max_concurrency} QUEUE_SIZE={settings.queue_size}",
            inherited=table or None,
        )
        self._slot: int | None = None
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

    def when_ready(self, arbiter: Any) -> None:
        """Say what is served, and have SIGTERM announced in the shared table before the workers hear of it."""
        self._started = True
        settings = self._settings
        _log.info(
            "router ready",
            model=settings.model_ref,
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

    def pre_fork(self, arbiter: Any, worker: Any) -> None:
        """Claim a slot for the worker about to be forked."""
        self.slots.reclaim_orphans(os.getpid())
        try:
            worker.slot = self.slots.claim()
            self.drain.mark(worker.slot)
        except NoFreeSlot as error:
            worker.slot = None
            _log.error("worker can't start", reason=str(error))

    def post_fork(self, arbiter: Any, worker: Any) -> None:
        """In the worker: take the slot, or exit if there is none (the arbiter tries again)."""
        if worker.slot is None:
            time.sleep(_SLOTLESS_PAUSE_S)  # so that the arbiter doesn't fork as fast as it can
            sys.exit(1)  # not gunicorn's WORKER_BOOT_ERROR, which would stop the whole server
        if not self.slots.occupy(worker.slot, worker.ppid):
            sys.exit(1)  # the arbiter died meanwhile, and somebody took its slots back
        self._slot = worker.slot
        self.drain.attach(worker.slot)
        worker.server_drains = lambda: self.drain.begun
        worker.upkeep = self._upkeep
        worker.stall_timeout_s = float(self._settings.stall_timeout_s)

    def post_worker_init(self, worker: Any) -> None:
        """In the worker, when its event loop is new: listen to the bell."""
        self.limiter.attach(worker.slot)

    def _upkeep(self) -> None:
        """In the worker, every second: mend what a process that died at a bad moment left undone."""
        self.slots.reclaim_orphans(os.getppid())
        self.limiter.pick_up()

    def child_exit(self, arbiter: Any, worker: Any) -> None:
        """A worker was reaped, however it died: take back what it held."""
        if worker.slot is None:
            return
        permits = self.slots.reclaim(worker.slot)
        if permits:
            _log.warning("permits reclaimed from a dead worker", pid=worker.pid, slot=worker.slot, permits=permits)

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
