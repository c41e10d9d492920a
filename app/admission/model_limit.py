"""A model's own `max_concurrency`, exact over all workers, within the cap that all models share.

It is asked before the cap: a model that is full refuses at once and takes nothing from the others, and a request that
waits in the queue counts for its model already, so the model never has more than its limit inside. Like a permit, the
count stands in the worker's own row and is cleared with it when the worker dies.
"""

from collections.abc import Callable

from app.errors import ModelLimitReached
from app.shared_memory.counters import InflightCounters
from app.shared_memory.table import SharedTable


class ModelLimit:
    """The limit of the model counted at `place`."""

    def __init__(
        self, table: SharedTable, usage: InflightCounters, place: int, limit: int, retry_after: Callable[[], int]
    ) -> None:
        self._lock = table.lock
        self._usage = usage
        self._place = place
        self._limit = limit
        self._retry_after = retry_after

    def acquire(self) -> Callable[[], None]:
        """Count one request more, or raise ModelLimitReached. Answers what takes it back, to be called once."""
        with self._lock:
            # To compare and to count are one step, and to count is one store into our own row.
            full = self._usage.total(self._place) >= self._limit
            if not full:
                self._usage.add(self._place)
        if full:
            raise ModelLimitReached(
                f"all {self._limit} requests that the model takes at once are there", self._retry_after()
            )
        return self._release

    def _release(self) -> None:
        self._usage.leave(self._place)
