"""Backing off: an endpoint that refuses a request for a reason that time heals is left alone for a while.

It asked for a pause by `Retry-After`, which is heeded up to `MAX_BACK_OFF_MS`; or it gave no time, and gets a
**cool-down**, which doubles from one refusal to the next until a request succeeds, or `REFUSALS_COUNT_MS` are over.
Without that, an endpoint that refuses at once would have the fewest requests in flight, and so would get nearly all of
them.

Backing off is a preference, never an outage: an endpoint that backs off is used where no other is available
(endpoint_pool.py). And it concerns one model only. A rate limit belongs to the credential with which a model's requests
are sent, and one model of a server may be full while another is idle.

The state is kept for every pair of an endpoint and a model. The table has room for all pairs, but only pages that were
written or read take memory. So a mark says of which endpoints there is anything, and `reset` looks at no others. The
mark is set before, and taken away after the rest: whenever a process is SIGKILLed, what is not marked is all 0. Between
two other stores a cool-down may become a step longer than it should be.
"""

from app.native import now_ms
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, SharedTable

LAYOUT = Layout(
    arrays={
        "back_off_until_ms": MAX_IDS * MAX_IDS,
        "back_off_refusals": MAX_IDS * MAX_IDS,
        "back_off_marks": MAX_IDS,
    }
)

MAX_BACK_OFF_MS = 60_000
FIRST_COOL_DOWN_MS = 100
MAX_COOL_DOWN_MS = 5_000
REFUSALS_COUNT_MS = 60_000
"""So long after a back-off the refusals before it count no more: whatever was wrong then is another story."""
_MOST_DOUBLINGS = 10


def pair(endpoint_id: int, model_id: int) -> int:
    """Returns the index under which an endpoint's back-off for a model is kept."""
    return endpoint_id * MAX_IDS + model_id


class BackOffs:
    """The back-offs of all pairs, in one process."""

    def __init__(self, table: SharedTable) -> None:
        self._lock = table.lock
        self.until_ms = table.array("back_off_until_ms")
        """When the back-off of a pair ends; not after now: it is over."""
        self._refusals = table.array("back_off_refusals")  # without a time, in a row
        self._marks = table.array("back_off_marks")  # by endpoint: 1 where its pairs may have something else than 0

    def reset(self, shared_id: int) -> None:
        """Forget the back-offs of the endpoint or the model that had this id. The lock is held."""
        if self._marks[shared_id]:
            row = slice(pair(shared_id, 0), pair(shared_id + 1, 0))
            for array in (self.until_ms, self._refusals):
                array[row] = _ROW_OF_ZEROS
            self._marks[shared_id] = 0
        for endpoint_id, marked in enumerate(self._marks.tolist()):
            if marked:
                at = pair(endpoint_id, shared_id)
                self.until_ms[at] = self._refusals[at] = 0

    def refused(self, at: int, retry_after_s: int | None) -> None:
        """Let a pair back off, for the time that the endpoint asked for or else for a cool-down."""
        with self._lock:
            self._marks[at // MAX_IDS] = 1
            now, until = now_ms(), self.until_ms[at]
            if retry_after_s:
                self.until_ms[at] = max(until, now + min(MAX_BACK_OFF_MS, retry_after_s * 1000))
            elif until <= now:  # or else the request began before the back-off, and is one refusal with that before it
                refusals = self._refusals[at] if now - until < REFUSALS_COUNT_MS else 0
                self._refusals[at] = min(refusals + 1, _MOST_DOUBLINGS)
                self.until_ms[at] = now + min(MAX_COOL_DOWN_MS, FIRST_COOL_DOWN_MS << refusals)

    def served(self, at: int) -> None:
        """Let the next cool-down of a pair be as short as a first one: a request succeeded."""
        if self._refusals[at]:  # most of the time it is 0, and nothing is stored
            self._refusals[at] = 0


_ROW_OF_ZEROS = memoryview(bytes(8 * MAX_IDS)).cast("q")
