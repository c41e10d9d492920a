"""What the requests of each model do, over all workers: how many are there, wait, were rejected, were served.

Every number is in the row of the worker that counts it, so counting is one store without the lock. What describes the
present (the requests that wait; those that are there are in shared_memory/counters.py) is cleared with the row when the
worker dies. What only grows stays: the worker's successor in the slot goes on counting, and no total ever shrinks. It
is set back when the id is given to another model, which no request of the old one uses any more.
"""

from collections.abc import Callable

from app.shared_memory.counters import MAX_IDS, InflightCounters
from app.shared_memory.table import SLOTS, Layout, SharedTable

_TOTALS = ("model_rejected", "model_served", "model_served_us")
LAYOUT = Layout(
    cells=("model_traffic_rows",),
    arrays={
        **dict.fromkeys(("model_queued", *_TOTALS), MAX_IDS * SLOTS),
        "model_mean_us": MAX_IDS,
        "model_excess_milli": MAX_IDS,
    },
)


class TrafficCounts:
    """The counts of all models, in one process. `attach` them to the worker's slot before counting."""

    def __init__(self, table: SharedTable, inflight: InflightCounters) -> None:
        self.inflight = inflight
        self._lock = table.lock
        self._rows = table.cell("model_traffic_rows")
        self._queued_by_slot = table.array("model_queued")
        self._totals = [table.array(name) for name in _TOTALS]
        self.mean_us = table.array("model_mean_us")
        """How long requests of each model took when some were last served. Written by the leader, as is the next."""
        self.excess_milli = table.array("model_excess_milli")
        """How many requests more than there are would be in progress, in thousandths: see demand.py."""
        self.queued = self.rejected = self.served = self.served_us = self._queued_by_slot[:0]
        """The worker's own row of each count."""

    def attach(self, slot: int) -> None:
        """Bind to the worker's row. The worker calls this."""
        with self._lock:
            self._rows[0] = max(self._rows[0], slot + 1)  # never fewer: the totals of a dead worker stay in its row
        own = slice(slot * MAX_IDS, (slot + 1) * MAX_IDS)
        self.queued = self._queued_by_slot[own]
        self.rejected, self.served, self.served_us = (total[own] for total in self._totals)

    def of(self, shared_id: int) -> "ModelTraffic":
        """Returns what counts for the model with this id."""
        return ModelTraffic(self, shared_id)

    def waiting(self, shared_id: int) -> int:
        """Returns how many requests of the model wait for a permit."""
        return self._sum(self._queued_by_slot, shared_id)

    def totals(self, shared_id: int) -> tuple[int, int, int]:
        """Returns how many requests were rejected and served, and how many microseconds those served took together."""
        rejected, served, served_us = (self._sum(total, shared_id) for total in self._totals)
        return rejected, served, served_us

    def rejections(self, shared_id: int) -> int:
        """Returns how many requests were rejected."""
        return self._sum(self._totals[0], shared_id)

    def release_row(self, slot: int) -> int:
        """Clear what a dead worker counted as present. Returns 0: there are no permits in it. The lock is held."""
        for at in range(slot * MAX_IDS, (slot + 1) * MAX_IDS):
            self._queued_by_slot[at] = 0
        return 0

    def reset(self, shared_id: int) -> None:
        """Forget the totals of the model that had this id. The lock is held."""
        self.mean_us[shared_id] = self.excess_milli[shared_id] = 0
        for total in self._totals:
            for at in range(shared_id, MAX_IDS * self._rows[0], MAX_IDS):
                total[at] = 0

    def _sum(self, counts: "memoryview[int]", shared_id: int) -> int:
        return sum(counts[shared_id : MAX_IDS * self._rows[0] : MAX_IDS])


class ModelTraffic:
    """Counts the requests of one model."""

    __slots__ = ("_counts", "_shared_id")

    def __init__(self, counts: TrafficCounts, shared_id: int) -> None:
        self._counts = counts
        self._shared_id = shared_id

    def enter(self) -> Callable[[], None]:
        """Count a request that is there. Returns the function that takes it back, once.

        A model with a limit of its own does not need this: its requests are counted when the limit is compared.
        """
        self._counts.inflight.add(self._shared_id)
        return self._leave

    def _leave(self) -> None:
        self._counts.inflight.remove(self._shared_id)

    def begin_wait(self) -> None:
        """Count a request that waits for a permit, beside its being there."""
        self._counts.queued[self._shared_id] += 1

    def end_wait(self) -> None:
        """Count a request less that waits."""
        self._counts.queued[self._shared_id] -= 1

    def count_rejected(self) -> None:
        """Count a request that was rejected because of overload."""
        self._counts.rejected[self._shared_id] += 1

    def count_served(self, seconds: float) -> None:
        """Count a request that was served, and how long it was inside the model.

        A process that is killed between the two stores leaves a count without its time, which is one of many.
        """
        self._counts.served[self._shared_id] += 1
        if seconds > 0:
            self._counts.served_us[self._shared_id] += int(seconds * 1e6)
