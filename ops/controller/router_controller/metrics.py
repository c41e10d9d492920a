"""The controller's own metrics."""

from prometheus_client import Counter, Gauge, Histogram

RECONCILES = Counter("router_controller_reconciles", "Reconciles of a resource, by result.", ["result"])
RECONCILE_SECONDS = Histogram(
    "router_controller_reconcile_seconds", "Time that a reconcile took.", buckets=(0.005, 0.02, 0.1, 0.5, 2, 10)
)
WRITES = Counter("router_controller_writes", "Writes to the API server that succeeded.", ["kind", "verb"])
FAILURES = Counter("router_controller_api_failures", "Requests that failed; code 0: no response.", ["code"])
WATCH_ENDS = Counter("router_controller_watch_ends", "Watches that ended, by kind and why.", ["kind", "why"])
RESOURCES = Gauge("router_controller_resources", "InferenceServices that are watched.")
QUEUE = Gauge("router_controller_queue_length", "InferenceServices that are reconciled or wait for it.")
LEADER = Gauge("router_controller_leader", "1 while this process is the leader.")
