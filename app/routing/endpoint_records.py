"""The state of every endpoint in the shared table: an array for each field, with an endpoint's value at its id.

Several modules write it, each its own fields.

| Fields | Written by | When |
|---|---|---|
| the circuit and what it counts | outlier_detection.py | under the lock |
| `first_byte_us`, `first_byte_deviation_us` | first_byte.py | under the lock |
| `unhealthy`, `slow`, `verified` | endpoint_health.py | by the leader, or as constants when routes are built |
| `last_served_ms` | endpoint_health.py, outlier_detection.py | by any worker, with or without the lock |
| `in_use_since_ms` | endpoint_health.py, route_store.py | by the leader, or by the publisher of new routes |
| `draining` | endpoint_drain.py, route_store.py | under the lock |

`last_served_ms` and `in_use_since_ms` are times, each only ever overwritten by a later one, or by one that is as late
to the millisecond: so a lost store changes nothing that matters. Times are milliseconds of the monotonic clock that all
processes share. Every value is one aligned word, so every store is atomic.
"""

from app.native import now_ms
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, SharedTable

_FIELDS = (
    "circuit",
    "unavailable_until_ms",
    "unhealthy",
    "slow",
    "verified",
    "last_served_ms",
    "first_byte_us",
    "first_byte_deviation_us",
    "ejections",
    "closed_at_ms",
    "consecutive_failures",
    "window",
    "window_requests",
    "window_failures",
    "in_use_since_ms",
    "draining",
)
LAYOUT = Layout(arrays={f"endpoint_{name}": MAX_IDS for name in _FIELDS})


class EndpointRecords:
    """The fields of all endpoints, and the lock."""

    def __init__(self, table: SharedTable) -> None:
        self.lock = table.lock
        fields = [table.array(f"endpoint_{name}") for name in _FIELDS]
        self._fields = fields
        self.circuit = fields[0]
        self.unavailable_until_ms = fields[1]
        """End of the ejection, or of a trial's lease; 0 while the circuit is closed."""
        self.unhealthy = fields[2]
        self.slow = fields[3]
        """The last health check failed only because no response came in time."""
        self.verified = fields[4]
        """A health check succeeded once, or none is needed."""
        self.last_served_ms = fields[5]
        """When a piece of a 2xx response to an inference request came last; 0: never."""
        self.first_byte_us = fields[6]
        """Usual time to the first byte; 0: not known."""
        self.first_byte_deviation_us = fields[7]
        self.ejections = fields[8]
        """In a row."""
        self.closed_at_ms = fields[9]
        self.consecutive_failures = fields[10]
        self.window = fields[11]
        """Number of the window that the next two count."""
        self.window_requests = fields[12]
        self.window_failures = fields[13]
        self.in_use_since_ms = fields[14]
        """When it appeared in the routes, or became healthy again; 0: at the start. `closed_at_ms` counts beside it."""
        self.draining = fields[15]
        """1 while an operator keeps new requests away."""

    def appear(self, shared_id: int) -> None:
        """Record that the endpoint is in the routes, and was not before. The lock is held."""
        self.draining[shared_id] = 0
        self.in_use_since_ms[shared_id] = now_ms()

    def reset(self, shared_id: int) -> None:
        """Forget what was known of the endpoint that had this id. The lock is held."""
        # The circuit is the first field and is cleared last: `unavailable_until_ms` must be 0 while it is closed
        # (outlier_detection.py). If the process is killed before that, the id still has its old name, and whoever gives
        # it to another name resets it again.
        for field in reversed(self._fields):
            field[shared_id] = 0
