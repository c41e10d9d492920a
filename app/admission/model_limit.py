"""A model's own `max_concurrency`, exact over all workers, within the cap that all models share.

It is checked before the cap. A model that is full rejects a request at once, even if the wait queue has room, and takes
nothing from other models. A request in the wait queue counts for its model already, so the model never has more than
its limit inside. As a permit is, the count is in the worker's own row, and it is cleared with the row when the worker
dies.
"""

from collections.abc import Callable
from functools import partial

from app.admission.expected_wait import expected_wait_ms, retry_after_s
from app.errors import ModelLimitReached, Overload
from app.native import monotonic
from app.shared_memory.counters import MAX_IDS, InflightCounters
from app.shared_memory.table import Layout, SharedTable

LAYOUT = Layout(arrays={"model_held_us": MAX_IDS})
"""How long requests hold a place of the model, a smoothed mean in microseconds. It is an estimate: workers write it
without the lock, and a lost update changes it by an eighth at most."""

_SMOOTHING = 8  # the newest request counts one eighth


class ModelLimit:
    """The limit of the model whose requests are counted under `shared_id`."""

    def __init__(self, table: SharedTable, counters: InflightCounters, shared_id: int, limit: int) -> None:
        self._lock = table.lock
        self._counters = counters
        self._shared_id = shared_id
        self._limit = limit
        self._held_us = table.array("model_held_us")[shared_id : shared_id + 1]

    def acquire(self) -> Callable[[], None]:
        """Count one more request. Returns the function that takes it back, once. Raises ModelLimitReached."""
        with self._lock:
            # Comparing and counting are one step under the lock, and counting is one store into this worker's own row.
            inflight = self._counters.total(self._shared_id)
            full = inflight >= self._limit
            if not full:
                self._counters.add(self._shared_id)
        if full:
            raise ModelLimitReached(
                f"the model has {self._limit} requests in progress or in the queue, all that its max_concurrency "
                "allows; over this limit nothing is queued, QUEUE_SIZE applies to MAX_CONCURRENCY only",
                self.retry_after(),
                Overload("model", self._limit, inflight, 0, self._expected_wait_ms()),
            )
        return partial(self._release, monotonic())

    def retry_after(self) -> int:
        """Returns the seconds, 1 to 60, until a place of this model comes free."""
        return retry_after_s(self._expected_wait_ms())

    def _expected_wait_ms(self) -> int | None:
        return expected_wait_ms(0, self._limit, (self._held_us[0],))

    def _release(self, taken_at: float) -> None:
        self._counters.remove(self._shared_id)
        mean, held_us = self._held_us[0], int((monotonic() - taken_at) * 1e6) + 1
        self._held_us[0] = mean + (held_us - mean) // _SMOOTHING if mean else held_us


class ModelLimits:
    """The limits of all models."""

    def __init__(self, table: SharedTable, counters: InflightCounters) -> None:
        self._table = table
        self._counters = counters

    def of(self, shared_id: int, limit: int) -> ModelLimit:
        """Returns the limit of the model with this id."""
        return ModelLimit(self._table, self._counters, shared_id, limit)

    def reset(self, shared_id: int) -> None:
        """Forget how long requests of the model that had this id took. The lock is held."""
        self._table.array("model_held_us")[shared_id] = 0
