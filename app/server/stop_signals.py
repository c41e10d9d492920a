"""The signals that tell a worker to stop, held back from one that has no handlers for them yet.

A worker that was just forked still has the arbiter's handlers, which would put a signal where nobody reads it. gunicorn
sends SIGTERM once when it reloads, and then waits for the worker until `graceful_timeout` is over. So these signals are
blocked from before the fork. The worker inherits that, the kernel keeps what arrives, and the worker's own handler gets
it when the worker lets the signals through.

The arbiter lets them through at once after its fork (hooks.py), by `os.register_at_fork`: gunicorn has no hook there.
What it got meanwhile stays with it, as a new process has no pending signals (signal(7)).
"""

import signal

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def hold_back() -> None:
    """Block them in this thread, and in the process that it forks next."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def let_through() -> None:
    """Unblock them. What has arrived is handled before this returns."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
