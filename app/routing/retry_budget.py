"""The retry budget of a model, one for all workers: retries are a share of its requests, whatever fails.

Every request pays its share in, a retry takes a whole one out. A reserve lets the first few failures of a quiet model
be retried too, and is the most that can be saved up.
"""

from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, SharedTable

LAYOUT = Layout(arrays={"retry_milli": MAX_IDS})
_RESERVE_MILLI = 10_000


class RetryBudget:
    """The budget of the model counted at `place`."""

    def __init__(self, table: SharedTable, place: int, share: float) -> None:
        self._lock = table.lock
        self._spent = table.array("retry_milli")[place : place + 1]  # less than the reserve by so much
        self._share_milli = round(share * 1000)

    def deposit(self) -> None:
        """A request more."""
        if self._spent[0]:  # most of the time nothing has been spent, and the lock can be left alone
            with self._lock:
                self._spent[0] = max(0, self._spent[0] - self._share_milli)

    def try_withdraw(self) -> bool:
        """Answers whether a retry may be made, and counts it."""
        with self._lock:
            if self._share_milli == 0 or self._spent[0] + 1000 > _RESERVE_MILLI:
                return False
            self._spent[0] += 1000
            return True


class RetryBudgets:
    def __init__(self, table: SharedTable) -> None:
        self._table = table

    def of(self, place: int, share: float) -> RetryBudget:
        return RetryBudget(self._table, place, share)

    def reset(self, place: int) -> None:
        self._table.array("retry_milli")[place] = 0
