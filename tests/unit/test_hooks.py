"""gunicorn's hooks, called without gunicorn."""

import os
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from structlog.testing import capture_logs

from app.admission.limiter import Limiter
from app.bootstrap import build_router
from app.config.settings import load_settings
from app.errors import RoutesError
from app.server import stop_signals
from tests.support.forks import acquire
from tests.support.local_router import HookedWorker, LocalRouter
from tests.support.router import ROOT


def test_upkeep_picks_up_what_was_granted_silently(tmp_path: Path) -> None:
    """A process that was killed between granting and notifying: the waiter's worker finds the grant within a second."""
    with LocalRouter(tmp_path, MAX_CONCURRENCY="1", QUEUE_SIZE="2") as local:
        router = local.router
        other = Limiter(router.table, 2)
        other.attach(router.slots.claim().slot)
        held = acquire(other)
        waiter = gevent.spawn(acquire, router.limiter)
        gevent.sleep(0)
        held.release()
        assert router.slots.own is not None
        os.eventfd_read(router.table.eventfds[router.slots.own])  # as if it had never been notified
        gevent.sleep(0.01)
        assert not waiter.ready()
        local.worker.context.upkeep()
        waiter.get(timeout=10).release()
        assert other._watcher is not None
        other._watcher.close()


def test_step_of_the_upkeep_that_fails_keeps_no_other_from_running(tmp_path: Path) -> None:
    """It reads what others sent. Neither the worker ends nor the steps that follow; the log says it once a minute."""

    def fail() -> None:
        raise ValueError("odd bytes")

    with capture_logs() as log, LocalRouter(tmp_path) as local:
        router = local.router
        done: list[str] = []
        router.models.load_scrapes.run_due = fail  # type: ignore[method-assign, assignment]
        router.limiter.recover = fail  # type: ignore[method-assign]
        router.demand.measure = lambda *_: done.append("demand")  # type: ignore[method-assign]
        for _ in range(2):
            local.worker.context.upkeep()
    assert done == ["demand", "demand"]
    failed = [line for line in log if line["event"] == "upkeep failed"]
    assert [line["step"] for line in failed] == ["recover the queue", "scrape endpoints"]
    assert all(line["log_level"] == "error" and line["exc_info"] for line in failed)


def test_slot_of_a_worker_that_never_ran_comes_back(tmp_path: Path) -> None:
    """It died before it occupied its slot, and gunicorn forgot it: the next fork finds that."""
    with LocalRouter(tmp_path) as local:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        slots = []
        for worker in (HookedWorker(pid), HookedWorker(os.getpid())):
            local.hooks.pre_fork(None, worker)  # type: ignore[arg-type]
            slots.append(local.hooks._claims[worker].slot)  # type: ignore[index]
        stop_signals.let_through()  # no fork follows that would do it
        assert slots[0] == slots[1]


@pytest.mark.slow
def test_configuration_that_is_read_again_has_the_same_hooks() -> None:
    """gunicorn executes gunicorn.conf.py again on HUP: the claims of the workers that run then must not be lost."""
    script = "from runpy import run_path as run; a, b = run('gunicorn.conf.py'), run('gunicorn.conf.py'); "
    script += "assert a['pre_fork'] == b['pre_fork'] and a['hooks'] is b['hooks']"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_start_that_fails_leaves_no_metrics_directory(tmp_path: Path) -> None:
    """Routes that are invalid, or shared memory of another program, end the start: nothing of it stays behind."""
    file = tmp_path / "routes.toml"
    file.write_text("models = 1")
    given = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"), "ROUTES_FILE": str(file)}
    with pytest.raises(RoutesError):
        build_router(load_settings(given, 1), {})
    assert not (tmp_path / "metrics").exists()
