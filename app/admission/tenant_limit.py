"""A tenant's own `max_concurrency`, exact over all workers, and how many requests each tenant has.

A request takes the place of its tenant first, then that of its model, then a permit, and gives them back in the reverse
order. A tenant that is full rejects a request at once, and takes nothing from models and other tenants. A request in
the wait queue counts for its tenant. The count is in the worker's own row, and is cleared with the row when the worker
dies.

Invariant: **nothing is counted under an id that was given to another tenant.** Ids are given under the lock, by the
publication that moves the cursor (auth/keys_publisher.py), and only ids with a count of 0 are given anew. `acquire`
compares the cursor and counts under the same lock. So either the count comes first, and the id stays with its tenant,
or the publication does, and `acquire` looks the tenant up again. The same comparison has every request that comes after
a publication meet the new limit, in every worker.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from app.admission.expected_wait import expected_wait_ms, retry_after_s
from app.errors import Overload, TenantLimitReached
from app.shared_memory import counters as counters_module
from app.shared_memory.counters import MAX_IDS, InflightCounters
from app.shared_memory.table import Layout, SharedTable

OTHER = "other"
"""The tenant whose limit, models and metrics are those of all tenants that the keys file does not list, together."""
COUNTERS = "tenant_"
"""The kind of the counters of tenants."""
LAYOUT = Layout(arrays={**counters_module.layout(COUNTERS).arrays, "tenant_held_us": MAX_IDS})
"""`tenant_held_us` is how long requests hold a place of the tenant, as `model_held_us` is of the model."""

_SMOOTHING = 8  # the newest request counts one eighth


class Tenants(NamedTuple):
    """The tenants of one publication."""

    cursor: int
    """The word that made it current."""
    ids: Mapping[str, int]
    """Every tenant that is counted apart, and OTHER."""
    limits: Mapping[str, int]
    """Those that have one."""


class TenantLimits:
    """The limits of all tenants, in one process."""

    def __init__(
        self, table: SharedTable, counters: InflightCounters, cursor: "memoryview[int]", current: Callable[[], Tenants]
    ) -> None:
        """`cursor` is the word that makes tenants current, and `current` returns those that this process knows."""
        self._lock = table.lock
        self._counters = counters
        self._cursor = cursor
        self._current = current
        self._held_us = table.array("tenant_held_us")

    def acquire(self, tenant: str) -> Callable[[], None]:
        """Count one more request. Returns the function that takes it back, once. Raises TenantLimitReached."""
        while True:
            now = self._current()
            name = tenant if tenant in now.ids else OTHER
            shared_id, limit = now.ids[name], now.limits.get(name)
            with self._lock:
                # Comparing and counting are one step under the lock, and counting is one store into this worker's row.
                if self._cursor[0] != now.cursor:
                    continue
                inflight = self._counters.total(shared_id)
                full = limit is not None and inflight >= limit
                if not full:
                    self._counters.add(shared_id)
            break
        if full:
            assert limit is not None
            expected_ms = expected_wait_ms(0, limit, (self._held_us[shared_id],))
            raise TenantLimitReached(
                f"the tenant has {limit} requests in progress or in the queue, all that its max_concurrency allows; "
                "over this limit nothing is queued",
                retry_after_s(expected_ms),
                Overload("tenant", limit, inflight, 0, expected_ms),
            )
        return partial(self._release, shared_id, time.monotonic())

    def label(self, tenant: str) -> str:
        """Returns the tenant's name in metrics: its own if the keys file lists it, so that their number is bounded."""
        return tenant if tenant in self._current().ids else OTHER

    def labels(self) -> Iterable[str]:
        """Returns all names that tenants have in metrics."""
        return self._current().ids

    def inflight(self) -> dict[str, int]:
        """Returns how many requests each tenant has, over all workers."""
        return {name: self._counters.total(shared_id) for name, shared_id in self._current().ids.items()}

    def _release(self, shared_id: int, taken_at: float) -> None:
        self._counters.remove(shared_id)
        mean, held_us = self._held_us[shared_id], int((time.monotonic() - taken_at) * 1e6) + 1
        self._held_us[shared_id] = mean + (held_us - mean) // _SMOOTHING if mean else held_us
