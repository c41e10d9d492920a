"""The ring of each worker: records of fixed size of its last requests, which every worker can read.

A record is written once, at the end of its request, by the worker to which the ring belongs, and without the lock. The
records of a worker outlive it: its successor in the slot goes on where it stopped.

**No reader takes a torn record.** Beside its content a record has its number, which is never used again. The writer
stores 0 in its place, then the content, then the number. So between the first store and the last the record is none,
also if the writer is stopped or SIGKILLed in between. A reader copies a record twice, some time apart, and takes it if
it has a number and both copies are equal. A copy that mixes two contents was made while the writer was storing. It
would have to be equal to a second one that is made `_APART_S` later: but by then the stores of that moment are visible,
in whatever order the processor made them, and the record is whole, or 0, or another one.

Which records to copy, a reader decides by single words of them (`column`), which may be torn. So it checks again what
it has decided, by the copy.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import gevent

from app.shared_memory.table import SLOTS, Layout, SharedTable

RECORDS = 4096
"""Of each worker."""
RECORD_WORDS = 48
"""The number, and the content. The ring of a slot takes 1.5 MiB, and one of a slot that was never used takes none: the
system gives memory to pages only when they are written."""
RECORD_BYTES = RECORD_WORDS * 8
_RING_BYTES = RECORDS * RECORD_BYTES
_APART_S = 0.001
LAYOUT = Layout(columns=("requests_recorded",), arrays={"request_records": SLOTS * RECORDS * RECORD_WORDS})


class RequestRing:
    """The rings of all workers, in one process. `attach` it to the worker's slot before writing."""

    def __init__(self, table: SharedTable) -> None:
        self._written = table.column("requests_recorded")
        words = table.array("request_records")
        self.words = words
        self.bytes = words.cast("B")
        """The same memory, as is the next."""
        self.doubles = words.cast("B").cast("d")
        self._slot = -1
        self._number = 0

    def attach(self, slot: int) -> None:
        """Bind to the worker's ring. The worker calls this."""
        self._slot = slot

    def begin(self) -> int:
        """Begin a record. Returns its index in `words`, or -1 in a process that is no worker."""
        slot = self._slot
        if slot < 0:
            return -1
        number = self._number = self._written[slot] + 1
        at = (slot * RECORDS + number % RECORDS) * RECORD_WORDS
        self.words[at] = 0
        return at

    def commit(self, at: int) -> None:
        """Make the record at this index one: its content is stored."""
        self.words[at] = self._number
        self._written[self._slot] = self._number

    def slots(self) -> list[int]:
        """Returns the slots whose workers have written records."""
        return [slot for slot, written in enumerate(self._written) if written]

    def column(self, slot: int, word: int, form: Literal["q", "d"] = "q") -> list[Any]:
        """Returns one word of each record of a slot, by the record's index, as it is at this moment.

        `form`: `q` for whole numbers, `d` for doubles.
        """
        used = min(self._written[slot] + 1, RECORDS)  # the first record has the number 1
        begin = slot * _RING_BYTES
        words: memoryview[Any] = self.bytes[begin : begin + used * RECORD_BYTES].cast(form)
        return words[word::RECORD_WORDS].tolist()

    def copies(
        self, places: Sequence[tuple[int, int]], pause: Callable[[float], object] = gevent.sleep
    ) -> list[bytes | None]:
        """Returns the records at these places, each a slot and an index: None for one that may be torn, or is none.

        Other greenlets run meanwhile.
        """
        before = [self._copy(slot, index) for slot, index in places]
        pause(_APART_S)
        now = [self._copy(slot, index) for slot, index in places]
        return [one if one == first and any(one[:8]) else None for first, one in zip(before, now, strict=True)]

    def _copy(self, slot: int, index: int) -> bytes:
        begin = slot * _RING_BYTES + index * RECORD_BYTES
        return bytes(self.bytes[begin : begin + RECORD_BYTES])
