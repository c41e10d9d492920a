"""The state of every endpoint, one record for each in the shared table. Several modules write it, each its own fields.

| Fields | Written by | When |
|---|---|---|
| the circuit and what it counts | outlier_detection.py | under the lock |
| `first_byte_us`, `first_byte_deviation_us` | first_byte.py | under the lock |
| `unhealthy`, `slow`, `verified` | endpoint_health.py | by the leader, or as constants when routes are built |
| `last_served_ms` | endpoint_health.py, outlier_detection.py | by any worker, with or without the lock |

`last_served_ms` is a time, and only ever overwritten by a later one, or by one that is as late to the millisecond: so a
lost store changes nothing that matters. Times are milliseconds of the monotonic clock that all processes share.
"""

from ctypes import Structure, c_int64

from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, SharedTable


class Record(Structure):
    """An endpoint's state in the shared table. Every field is one aligned word, so every store is atomic."""

    _fields_ = (
        ("circuit", c_int64),
        ("unavailable_until_ms", c_int64),  # end of the ejection, or of a trial's lease; 0 while closed
        ("unhealthy", c_int64),
        ("slow", c_int64),  # the last health check failed only because no response came in time
        ("verified", c_int64),  # a health check succeeded once, or none is needed
        ("last_served_ms", c_int64),  # when a piece of a 2xx response to an inference request came last; 0: never
        ("first_byte_us", c_int64),  # usual time to the first byte; 0: not known
        ("first_byte_deviation_us", c_int64),
        ("ejections", c_int64),  # in a row
        ("closed_at_ms", c_int64),
        ("consecutive_failures", c_int64),
        ("window", c_int64),  # number of the window that the next two count
        ("window_requests", c_int64),
        ("window_failures", c_int64),
    )

    circuit: int
    unavailable_until_ms: int
    unhealthy: int
    slow: int
    verified: int
    last_served_ms: int
    first_byte_us: int
    first_byte_deviation_us: int
    ejections: int
    closed_at_ms: int
    consecutive_failures: int
    window: int
    window_requests: int
    window_failures: int


_FIELDS = tuple(name for name, *_ in Record._fields_)
LAYOUT = Layout(arrays={"endpoints": MAX_IDS * len(_FIELDS)})


class EndpointRecords:
    """The records of all endpoints, by their ids, and the lock."""

    def __init__(self, table: SharedTable) -> None:
        self.lock = table.lock
        self.of: list[Record] = list((Record * MAX_IDS).from_buffer(table.array("endpoints")))

    def reset(self, shared_id: int) -> None:
        """Forget what was known of the endpoint that had this id. The lock is held."""
        record = self.of[shared_id]
        # The circuit is the first field and is cleared last: `unavailable_until_ms` must be 0 while it is closed
        # (outlier_detection.py). If the process is killed before that, the id still has its old name, and whoever gives
        # it to another name resets it again.
        for name in reversed(_FIELDS):
            setattr(record, name, 0)
