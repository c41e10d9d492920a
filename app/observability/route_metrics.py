"""What is counted and shown of the routes: files that were read again, and what discovery finds."""

from app.observability.metric_families import Family

RELOADS = ("ok", "refused")

RELOADED = Family(
    "counter",
    "router_routes_reloads_total",
    "Changed routes files, by what became of them: published (ok), or refused as invalid.",
    ("result",),
)
ROUTES_STALE = Family(
    "gauge",
    "router_routes_stale",
    "Whether the routes file was refused as invalid when it was last read: older routes are served.",
)
DISCOVERED = Family(
    "gauge", "router_discovered_endpoints", "Endpoints that discovery found, those in use now.", ("source",)
)
DISCOVERY_RESULTS = Family(
    "counter",
    "router_discovery_results_total",
    "Lookups, lists and watches of discovery, by their result; after failed ones the last endpoints stay.",
    ("source", "result"),
)
