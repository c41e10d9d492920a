"""Which modules are compiled when the router is installed, and whether those that run are.

A compiled module is the same source, made into an extension by Cython (setup.py). The file `x.pxd` beside `x.py` gives
types to its classes and functions. Nothing else differs: the router runs as well uncompiled, and slower.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

MODULES = (
    "app.admission.limiter",
    "app.admission.model_place",
    "app.admission.model_traffic",
    "app.admission.permit",
    "app.admission.wait_queue",
    "app.api.exchange",
    "app.api.outermost",
    "app.api.request_recorder",
    "app.api.stream_meter",
    "app.native",
    "app.net.timed_socket",
    "app.observability.metric_cells",
    "app.observability.token_metrics",
    "app.protocols.calls",
    "app.protocols.event_stream",
    "app.protocols.interfaces",
    "app.protocols.token_usage",
    "app.routing.attempt",
    "app.routing.attempt_record",
    "app.routing.endpoint",
    "app.routing.endpoint_health",
    "app.routing.endpoint_pool",
    "app.routing.endpoint_records",
    "app.routing.first_byte",
    "app.routing.outlier_detection",
    "app.routing.policies",
    "app.routing.prefix_history",
    "app.routing.upstream_request",
    "app.server.client_connection",
    "app.server.declared_body",
    "app.server.fast_path",
    "app.shared_memory.counters",
    "app.shared_memory.request_ring",
    "app.upstream.chunks",
    "app.upstream.connection",
    "app.upstream.headers",
    "app.upstream.pool",
    "app.upstream.response_head",
)
"""The modules of a request's path that gain by it."""


def form() -> str:
    """Returns `compiled` or `pure`: how the modules run; or `mixed`, and which of them are not compiled."""
    uncompiled = [name for name in MODULES if not _is_compiled(name)]
    if not uncompiled:
        return "compiled"
    return "pure" if len(uncompiled) == len(MODULES) else f"mixed: {', '.join(uncompiled)} not compiled"


def _is_compiled(name: str) -> bool:
    module = sys.modules.get(name)
    spec = find_spec(name) if module is None else module.__spec__
    return spec is not None and (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES))
