"""How many connections and file descriptors a worker needs, so that overload is answered and never hidden.

Past `worker_connections` a worker stops accepting, and neither a 429 nor a probe gets out of the kernel's accept queue.
So every worker can hold all that may be in flight or queued (one worker may be all there is for a moment) and, beyond
that, as many again or at least `_KNOCKING` that are being refused or asking for the health.
"""

import resource

from app.config.settings import Settings
from app.errors import SettingsError

_KNOCKING = 4096
_LEAST_KNOCKING = 128
_OTHER_DESCRIPTORS = 256  # listeners, eventfds, metrics files, logs
_DESCRIPTORS_A_REQUEST = 2  # the client's connection and the model server's


def reserve_connections(settings: Settings) -> int:
    """Raise the limit of open files as needed; answers `worker_connections`.

    Raises SettingsError where the hard limit forbids it, naming both numbers.
    """
    served = settings.max_concurrency + settings.queue_size
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _descriptors(served, max(served, _KNOCKING))
    least = _descriptors(served, _LEAST_KNOCKING)
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
    return reach - _OTHER_DESCRIPTORS - (_DESCRIPTORS_A_REQUEST - 1) * served


def _descriptors(served: int, knocking: int) -> int:
    return _DESCRIPTORS_A_REQUEST * served + knocking + _OTHER_DESCRIPTORS


def _raise_hard_limit(wanted: int) -> int:
    """What only a privileged process may do; answers the hard limit afterwards."""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):
        pass
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
