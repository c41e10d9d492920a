"""What gunicorn's hooks hand to a worker."""

import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from app.shared_memory.connection_counts import ConnectionCounts

CUT_OFF_S = 2
"""How much longer than its worker the arbiter waits: the worker stops what still runs, each request tells its client,
and is counted and logged. Then the arbiter kills."""


class WorkerContext(NamedTuple):
    """What a worker needs of its server. The defaults are for an application that has none."""

    server_drains: Callable[[], bool] = lambda: False
    """Whether the whole server shuts down, not just this worker."""
    connection_counts: ConnectionCounts | None = None
    """The connections of all workers; without it, this worker accepts whatever comes."""
    upkeep: Callable[[], object] = lambda: None
    """Called with every heartbeat."""
    before_exit: Callable[[float], object] = lambda seconds: None
    """Called when the worker has served its last request, with the seconds that are left to it."""
    graceful_timeout_s: float | None = None
    """How long a drain waits for requests; None: as long as gunicorn's arbiter does."""
    stall_timeout_s: float = 30.0
    """How long a client may neither send nor take anything while it should."""
    upload_timeout_s: float = 300.0
    """How long a body may take to arrive."""
    script_name: str = ""
    """The environment variable SCRIPT_NAME."""
    tls_at: Callable[[Any], Callable[[], ssl.SSLContext] | None] = lambda address: None
    """Returns what returns the current TLS context, for the connections that are accepted at an address; or None."""
    count_handshake: Callable[[str], object] = lambda reason: None
    """Called when a TLS handshake fails, with the reason."""
    log_handshake: Callable[[str, str], object] = lambda client, detail: None
    """Called with the client's address and what is wrong, where no response tells it."""
    log_malformed: Callable[[str, int, str], object] = lambda client, status, detail: None
    """Called with the client's address, the status and the detail of the response to a malformed request."""
    cross_origin_fields: Callable[[str], list[tuple[str, str]]] = lambda origin: []
    """Returns what such a response says to a page of this origin (CORS)."""
