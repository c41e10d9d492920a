"""A model's own `max_concurrency`, exact over all workers, within the cap that all models share.

It is checked before the cap. A model that is full rejects a request at once, and takes nothing from other models. A
request in the wait queue counts for its model already, so the model never has more than its limit inside. As a permit
is, the count is in the worker's own row, and it is cleared with the row when the worker dies.
"""

from collections.abc import Callable

from app.errors import ModelLimitReached
from app.shared_memory.counters import InflightCounters
from app.shared_memory.table import SharedTable


class ModelLimit:
    """The limit of the model whose requests are counted under `shared_id`."""

    def __init__(
        self,
        table: SharedTable,
        counters: InflightCounters,
        shared_id: int,
        limit: int,
        retry_after: Callable[[], int],
    ) -> None:
        self._lock = table.lock
        self._counters = counters
        self._shared_id = shared_id
        self._limit = limit
        self._retry_after = retry_after

    def acquire(self) -> Callable[[], None]:
        """Count one more request. Returns the function that takes it back. Raises ModelLimitReached."""
        with self._lock:
            # Comparing and counting are one step under the lock, and counting is one store into this worker's own row.
            full = self._counters.total(self._shared_id) >= self._limit
            if not full:
                self._counters.add(self._shared_id)
        if full:
            raise ModelLimitReached(
                f"the model has {self._limit} requests in progress, all that its max_concurrency allows",
                self._retry_after(),
            )
        return self._release

    def _release(self) -> None:
        self._counters.remove(self._shared_id)
