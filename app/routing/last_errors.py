"""The last error of every endpoint, for the people who run the router.

A text of fixed size for each id, written only when an attempt or a health check has failed, under the lock, and read
under it. So no reader sees half a text. A process that is SIGKILLed between two stores leaves an entry whose time is 0,
which is none: the time is cleared first and stored last. No text has a word of a request or of a response in it.
"""

from typing import NamedTuple

from app.native import now_ms
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, SharedTable

_WORDS = 32
"""Of an entry: the time in ms of the monotonic clock, the length of the text, the text."""
_TEXT_BYTES = (_WORDS - 2) * 8
LAYOUT = Layout(arrays={"endpoint_last_errors": MAX_IDS * _WORDS})


class LastError(NamedTuple):
    """What went wrong last."""

    text: str
    at_ms: int
    """When, by the monotonic clock."""


class LastErrors:
    """The last errors of all endpoints, in one process."""

    def __init__(self, table: SharedTable) -> None:
        self._lock = table.lock
        self._words = table.array("endpoint_last_errors")
        self._bytes = self._words.cast("B")
        self._read: dict[int, LastError] = {}
        """By id: what was read, as long as the entry has the same time. Old errors are read again and again.

        An error that follows within the same millisecond has the same time. So what is read within that millisecond is
        not kept: whatever is recorded later has another time.
        """

    def record(self, shared_id: int, text: str) -> None:
        """Keep this error. The id belongs to the endpoint: an attempt counts under it, or the caller has looked."""
        content = text.encode(errors="replace")[:_TEXT_BYTES]
        at = shared_id * _WORDS
        with self._lock:
            self._words[at] = 0
            self._words[at + 1] = len(content)
            begin = (at + 2) * 8
            self._bytes[begin : begin + len(content)] = content
            self._words[at] = now_ms()

    def of(self, shared_id: int) -> LastError | None:
        """Returns the last error of the endpoint with this id, None if there was none."""
        at = shared_id * _WORDS
        when = self._words[at]
        if not when:  # as with most: a word is read at once, and no lock is worth to see it a moment later
            return None
        known = self._read.get(shared_id)
        if known is not None and known.at_ms == when:
            return known
        with self._lock:
            when, length = self._words[at], self._words[at + 1]
            content = bytes(self._bytes[(at + 2) * 8 : (at + 2) * 8 + length])
            may_be_kept = now_ms() > when
        if not when:
            return None
        found = LastError(content.decode(errors="replace"), when)
        if may_be_kept:
            self._read[shared_id] = found
        return found

    def reset(self, shared_id: int) -> None:
        """Forget the error of the endpoint that had this id. The lock is held."""
        self._words[shared_id * _WORDS] = 0
