"""The load of endpoints, for `least_load`: what this router sent, and what the model servers report beside it.

**The estimate.** A report is old when it is used: a scrape is a second apart from the next. A policy that chose by
reports alone would send everything to the one endpoint that was idle a second ago. So the part of the load that this
router knows exactly, its own requests in flight over all workers, always counts as it is now, and only the rest comes
from the report:

    others  = max(0, waiting + running at the report - own in flight at the report)
    queued  = max(0, waiting at the report + own in flight now - own in flight at the report), or 0 if none was waiting
    load    = (own in flight now + others + queued) * (1 + use of the cache / 2)

- Every request that is sent raises the load of its endpoint at once by at least 1, in the eyes of all workers. So
  between two reports the policy is least_inflight, started from what the servers reported, and can't herd.
- `others` are requests that other routers sent: own requests in the report cancel out, whatever has ended since.
- A request that waits counts twice, because a new one waits behind it. Where requests wait, those that were sent since
  the report wait too; those that ended make room.
- The cache is full of long prompts where a count of requests sees few, and each request there takes longer. It counts
  by half: as a whole, routers that use the same endpoints follow each other's reports (tests/bench/load_reports.py).

**No report.** A figure is stale when it is older than three intervals. An endpoint whose figures are all stale is taken
for as loaded by others as the mean of those that report: to take it for idle would send it everything, and it may be
the one that is in trouble. If no endpoint reports, what is left is the count of requests in flight.

**Writers.** The leader writes what it scraped, and any worker what came with a response, under the lock, under which
choices are made too: so no reader sees half a report. A process that is SIGKILLed between two stores leaves a report
whose time is 0, which is stale: the time is cleared first and stored last.
"""

from collections.abc import Sequence
from typing import NamedTuple

from app.config import route_schema
from app.native import now_ms
from app.routing.load_formats import ServerLoad
from app.shared_memory.counters import MAX_IDS, InflightCounters
from app.shared_memory.table import Layout, SharedTable

_FIELDS = ("queue_at_ms", "cache_at_ms", "waiting_milli", "others_milli", "inflight", "cache_milli")
LAYOUT = Layout(arrays={f"load_{name}": MAX_IDS for name in _FIELDS})
STALE_INTERVALS = 3
UNIT = 1000
"""Loads are whole numbers of thousandths of a request."""


class Reported(NamedTuple):
    """What counts of an endpoint's reports now. Zeros where nothing is reported."""

    waiting: int = 0
    """In thousandths, as `others`."""
    others: int = 0
    inflight: int = 0
    """Own requests in flight at the report."""
    cache: int = 0
    """Thousandths of the cache that are in use."""
    is_stale: bool = True


def stale_ms(model: route_schema.Model) -> int:
    """Returns the age, in ms, at which a report of the model's endpoints is stale."""
    return int(model.load_report.interval_s * STALE_INTERVALS * 1000)


def load_of(inflight: int, reported: Reported) -> int:
    """Returns the estimated load of an endpoint with so many own requests in flight, in thousandths of a request."""
    queued = max(0, reported.waiting + (inflight - reported.inflight) * UNIT) if reported.waiting else 0
    return (inflight * UNIT + reported.others + queued) * (2 * UNIT + reported.cache) // (2 * UNIT)


def loads_of(inflight: Sequence[int], reports: Sequence[Reported]) -> list[int]:
    """Returns the loads of the endpoints of a choice. Those without a report are taken for as loaded as the mean."""
    loads = [load_of(count, report) for count, report in zip(inflight, reports, strict=True)]
    fresh = [at for at, report in enumerate(reports) if not report.is_stale]
    if fresh and len(fresh) < len(loads):
        beside = sum(loads[at] - inflight[at] * UNIT for at in fresh) // len(fresh)
        for at, report in enumerate(reports):
            if report.is_stale:
                loads[at] += max(0, beside)
    return loads


def _is_fresh(at_ms: int, now: int, stale_ms: int) -> bool:
    # The clock starts at 0 when the machine does: 0 is no time, however short ago it was.
    return at_ms != 0 and 0 <= now - at_ms <= stale_ms


class LoadReports:
    """The reports of all endpoints, in one process."""

    def __init__(self, table: SharedTable, counters: InflightCounters) -> None:
        self._lock = table.lock
        self._counters = counters
        self._arrays = [table.array(f"load_{name}") for name in _FIELDS]

    def reset(self, shared_id: int) -> None:
        """Forget the reports of the endpoint that had this id. The lock is held."""
        for array in self._arrays:
            array[shared_id] = 0

    def record(self, shared_id: int, report: ServerLoad) -> None:
        """Record what an endpoint has reported just now."""
        queue_at, cache_at, waiting, others, inflight, cache = self._arrays
        with self._lock:
            own = self._counters.total(shared_id)
            now = now_ms()
            if report.waiting is not None or report.running is not None:
                queue_at[shared_id] = 0
                waiting[shared_id] = int((report.waiting or 0) * UNIT)
                # A server that does not tell how many run has at least those that wait beside ours.
                total = (report.waiting or 0) + (report.running or 0)
                others[shared_id] = max(0, int(total * UNIT) - own * UNIT)
                inflight[shared_id] = own
                queue_at[shared_id] = now
            if report.cache is not None:
                cache_at[shared_id] = 0
                cache[shared_id] = int(report.cache * UNIT)
                cache_at[shared_id] = now

    def read(self, shared_id: int, now: int, stale_ms: int) -> Reported:
        """Returns what counts of an endpoint's reports. The lock is held if a choice follows."""
        queue_at, cache_at, waiting, others, inflight, cache = self._arrays
        has_queue = _is_fresh(queue_at[shared_id], now, stale_ms)
        has_cache = _is_fresh(cache_at[shared_id], now, stale_ms)
        queue = (waiting[shared_id], others[shared_id], inflight[shared_id]) if has_queue else (0, 0, 0)
        return Reported(*queue, cache[shared_id] if has_cache else 0, not (has_queue or has_cache))

    def is_stale(self, shared_id: int, stale_ms: int) -> bool:
        """Whether an endpoint has reported nothing for so long."""
        return self.read(shared_id, now_ms(), stale_ms).is_stale
