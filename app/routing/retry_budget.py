"""The retry budget of a model, one for all workers: retries are a share of its requests, whatever fails.

Every request deposits its share, and a retry withdraws a whole one. A reserve lets the first failures of a quiet model
be retried too; it is also the most that can be saved up. (Finagle has the same under this name.)
"""

from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, SharedTable

LAYOUT = Layout(arrays={"spent_retry_milli": MAX_IDS})
"""How much of a model's reserve is spent, in thousandths of a retry."""

_RESERVE_MILLI = 10_000


class RetryBudget:
    """The budget of the model with this id."""

    def __init__(self, table: SharedTable, shared_id: int, share: float) -> None:
        self._lock = table.lock
        self._spent_milli = table.array("spent_retry_milli")[shared_id : shared_id + 1]
        self._share_milli = round(share * 1000)

    def deposit(self) -> None:
        """Deposit the share of one more request."""
        if self._spent_milli[0]:  # most of the time nothing is spent, and the lock is not needed
            with self._lock:
                self._spent_milli[0] = max(0, self._spent_milli[0] - self._share_milli)

    def try_withdraw(self) -> bool:
        """Withdraw one retry. Returns whether the budget allowed it."""
        with self._lock:
            if self._share_milli == 0 or self._spent_milli[0] + 1000 > _RESERVE_MILLI:
                return False
            self._spent_milli[0] += 1000
            return True


class RetryBudgets:
    """The budgets of all models."""

    def __init__(self, table: SharedTable) -> None:
        self._table = table

    def of(self, shared_id: int, share: float) -> RetryBudget:
        """Returns the budget of the model with this id."""
        return RetryBudget(self._table, shared_id, share)

    def reset(self, shared_id: int) -> None:
        """Forget what the model that had this id has spent. The lock is held."""
        self._table.array("spent_retry_milli")[shared_id] = 0
