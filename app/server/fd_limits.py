"""How many connections and file descriptors a worker needs, so that overload is answered and never hidden.

Past `worker_connections` a worker stops accepting, and neither a 429 nor a probe gets out of the kernel's accept queue.
So every worker can hold all requests that may be in flight or queued, because it may be the only worker for a moment.
Beside them it can hold as many connections again, or at least `_OVERFLOW`, that are being rejected or probe the health.
"""

import resource

from app.config.settings import Settings
from app.errors import SettingsError

_OVERFLOW = 4096
_MIN_OVERFLOW = 128
_OTHER_DESCRIPTORS = 256  # listeners, eventfds, metrics files, logs
_DESCRIPTORS_PER_REQUEST = 2  # the client's connection and the model server's


def reserve_connections(settings: Settings) -> int:
    """Raise the limit of open files as far as needed. Returns `worker_connections`.

    Raises SettingsError, which names both numbers, where the hard limit is too low.
    """
    served = settings.max_concurrency + settings.queue_size
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _descriptors(served, max(served, _OVERFLOW))
    least = _descriptors(served, _MIN_OVERFLOW)
    reach = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if least > reach:
        reach = _raise_hard_limit(least)
    if least > reach:
        raise SettingsError(
            f"MAX_CONCURRENCY={settings.max_concurrency} with QUEUE_SIZE={settings.queue_size}: must be low enough for "
            f"the limit of open files; they need {least} a worker and the hard limit (ulimit -Hn) is {reach}"
        )
    if soft < reach:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reach, max(hard, reach) if hard >= 0 else hard))
    return reach - _OTHER_DESCRIPTORS - (_DESCRIPTORS_PER_REQUEST - 1) * served


def _descriptors(served: int, overflow: int) -> int:
    return _DESCRIPTORS_PER_REQUEST * served + overflow + _OTHER_DESCRIPTORS


def _raise_hard_limit(wanted: int) -> int:
    """Try to raise the hard limit, which takes privileges. Returns the hard limit afterwards."""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):
        pass
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
