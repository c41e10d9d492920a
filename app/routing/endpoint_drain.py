"""Draining an endpoint: new requests go elsewhere, and those in progress finish.

The flag is one word of the endpoint's record. It is stored under the lock, under which every worker chooses: so once
`drain` has returned, no worker begins a request there, except one about a response that only this endpoint has. Beside
its requests the endpoint keeps its connections, and its health checks go on.

The flag lives as long as the shared memory: workers may come and go. It stays while the URL is in the routes, whatever
else changes in them. A URL that has left the routes and comes back is a new endpoint, and does not drain.
"""

from app.native import now_ms
from app.routing.endpoint_records import EndpointRecords
from app.shared_memory.counters import InflightCounters
from app.shared_memory.table import name_hash


class EndpointDrain:
    """The drains of all endpoints, in one process."""

    def __init__(self, records: EndpointRecords, counters: InflightCounters) -> None:
        self._records = records
        self._counters = counters

    def set(self, shared_id: int, url: str, generation: int, *, draining: bool) -> bool:
        """Begin or end the drain of an endpoint of this generation of the routes.

        Returns False, with nothing changed, if the id has been given to another name meanwhile.
        """
        records = self._records
        with records.lock:
            if not self._counters.is_current(shared_id, name_hash(url), generation):
                return False
            if records.draining[shared_id] and not draining:
                # First: whoever sees the endpoint in use sees its slow start. It may be another program by now.
                records.in_use_since_ms[shared_id] = now_ms()
            records.draining[shared_id] = draining
        return True
