"""What the shared table says of each endpoint, on the metrics page."""

from typing import NamedTuple

from app.observability.metric_families import Family

ENDPOINT_INFLIGHT = Family(
    "gauge", "router_endpoint_inflight", "Requests in progress with an endpoint, over all workers.", ("endpoint",)
)
ENDPOINT_UP = Family(
    "gauge", "router_endpoint_up", "Whether an endpoint is known to be healthy, and not ejected.", ("endpoint",)
)
ENDPOINT_DRAINING = Family(
    "gauge", "router_endpoint_draining", "Whether an operator keeps new requests away from an endpoint.", ("endpoint",)
)
ENDPOINT_LOAD_STALE = Family(
    "gauge",
    "router_endpoint_load_stale",
    "Whether an endpoint of a `least_load` model has reported no load for three intervals, and is balanced without it.",
    ("endpoint",),
)


class EndpointState(NamedTuple):
    """What the gauges say of an endpoint."""

    url: str
    inflight: int
    up: bool
    load_is_stale: bool | None = None
    """None: its load is not used."""
    draining: bool = False
