"""gunicorn's hooks, called without gunicorn, in a process of their own: to import app.wsgi is to build a router."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
START = """
from gevent import monkey

monkey.patch_all()

import os
from types import SimpleNamespace

import gevent

from app.admission.limiter import Limiter
from app.wsgi import lifecycle

worker = SimpleNamespace(ppid=os.getpid(), pid=os.getpid())
lifecycle.pre_fork(None, worker)
lifecycle.post_fork(None, worker)
lifecycle.post_worker_init(worker)
"""


def run(script: str, **environ: str) -> None:
    """Run a worker's start and then this."""
    command = [sys.executable, "-c", START + script]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_upkeep_picks_up_what_was_granted_silently() -> None:
    """A process that was killed between granting and ringing: the waiter's worker finds the grant within a second."""
    run(
        """
other = Limiter(lifecycle._table, 1, 2)
other.attach(lifecycle.slots.claim().slot)
held = other.acquire()
waiter = gevent.spawn(lifecycle.limiter.acquire)
gevent.sleep(0)
held.release()
os.eventfd_read(lifecycle._table.eventfds[worker.claim.slot])  # as if it had never rung
gevent.sleep(0.01)
assert not waiter.ready()
worker.upkeep()
waiter.get(timeout=10).release()
""",
        MAX_CONCURRENCY="1",
        QUEUE_SIZE="2",
        QUEUE_TIMEOUT_MS="20000",
    )


def test_slot_of_a_worker_that_never_ran_comes_back() -> None:
    """It died before it occupied its slot, and gunicorn forgot it: the next fork finds that."""
    run(
        """
pid = os.fork()
if not pid:
    os._exit(0)
os.waitpid(pid, 0)
forgotten = SimpleNamespace(pid=pid)
lifecycle.pre_fork(None, forgotten)
slot = forgotten.claim.slot
following = SimpleNamespace(pid=os.getpid())
lifecycle.pre_fork(None, following)
assert following.claim.slot == slot, (following.claim, slot)
"""
    )
