"""The waiting line: first come, first served over all workers, kept in shared memory.

Entries stand in the order of arrival, each `ticket << 8 | slot` of the worker whose request waits; tickets only grow.
A cursor splits the line: **whoever stands before it has been granted a permit** and has yet to pick it up, whoever
stands behind it waits. To grant is to move the cursor past one entry.

    first            grant            tail
      | granted, to be | waiting        |
      | picked up      |                | free space, then the other half

Someone who left (picked up, gave up, died) keeps the ticket and loses the slot: DEAD, passed over. When the space is
used up, the living move to the other half of the array and the cursor follows, so that no ticket ever changes. One
word between the halves stays unused, so that the tail alone tells which half is in use.

Every method needs the table's lock held. Why a SIGKILL inside any of them does no harm: grant index, tail and number
granted are packed into one word, so append, grant and move each take effect with one store. `remove` takes two; between
them `granted` counts one too many, which refuses a request that might have been admitted, never admits one too many,
and `evict`, run for every worker that dies, counts anew. `line_first` only saves walking past the dead: a value that
doesn't lie in the half in use is ignored, and a move stores it before the cursor.
"""

from bisect import bisect_left

from app.shared_memory.table import SLOTS, SharedTable

CELLS = ("line_cursor", "line_first", "line_ticket")

_SLOT_BITS = 8
_DEAD = (1 << _SLOT_BITS) - 1
_INDEX_BITS = 20
_MASK = (1 << _INDEX_BITS) - 1
_SLACK = 64
assert SLOTS < _DEAD


def arrays(capacity: int) -> dict[str, int]:
    """The shared array that a line of `capacity` needs, in words: two halves, each with room for the dead."""
    return {"line": 2 * _half(capacity) + 1 if capacity else 0}


def _half(capacity: int) -> int:
    return 2 * capacity + _SLACK


class WaitQueue:
    """A view of the line in one process."""

    def __init__(self, table: SharedTable, capacity: int) -> None:
        self._half = _half(capacity)
        assert 2 * self._half < _MASK
        self._entries = table.array("line")
        self._cursor = table.cell("line_cursor")
        self._first = table.cell("line_first")
        self._ticket = table.cell("line_ticket")

    @property
    def granted(self) -> int:
        """Permits granted and not yet picked up."""
        return self._cursor[0] & _MASK

    def append(self, slot: int) -> int | None:
        """Stand at the end; answers the ticket, or None when the array is full of the living."""
        grant, tail, granted = self._read()
        if tail == self._base(tail) + self._half:
            grant, tail, granted = self._move()
            if tail == self._base(tail) + self._half:
                return None
        ticket = self._ticket[0] + 1
        self._ticket[0] = ticket
        self._entries[tail] = ticket << _SLOT_BITS | slot
        self._write(grant, tail + 1, granted)
        return ticket

    def grant_next(self) -> int | None:
        """Grant a permit to the longest waiting; answers the slot to wake, or None when nobody waits."""
        grant, tail, granted = self._read()
        while grant < tail:
            slot = self._entries[grant] & _DEAD
            grant += 1
            if slot != _DEAD:
                self._write(grant, tail, granted + 1)
                return slot
        self._write(grant, tail, granted)
        return None

    def is_granted(self, ticket: int) -> bool:
        """Whether the holder of this ticket, who has not left, was granted a permit."""
        grant, tail, _ = self._read()
        return grant >= tail or ticket < self._entries[grant] >> _SLOT_BITS

    def remove(self, ticket: int) -> None:
        """Leave: to pick the permit up or, if none was granted, for good."""
        grant, tail, granted = self._read()
        first = self._start(tail)
        at = bisect_left(self._entries, ticket << _SLOT_BITS, first, tail)
        self._entries[at] = ticket << _SLOT_BITS | _DEAD
        if at < grant:
            self._write(grant, tail, granted - 1)
        if at == first:
            while at < tail and self._entries[at] & _DEAD == _DEAD:
                at += 1
            self._first[0] = at

    def evict(self, slot: int) -> int:
        """Take every entry of a dead worker out; answers how many granted permits come back with them."""
        grant, tail, _ = self._read()
        freed = granted = 0
        for at in range(self._start(tail), tail):
            owner = self._entries[at] & _DEAD
            if owner == slot:
                self._entries[at] |= _DEAD
                freed += at < grant
            elif owner != _DEAD:
                granted += at < grant
        self._write(grant, tail, granted)
        return freed

    def granted_slots(self) -> set[int]:
        """The workers that have a permit to pick up."""
        grant, tail, _ = self._read()
        return {self._entries[at] & _DEAD for at in range(self._start(tail), grant)} - {_DEAD}

    def _move(self) -> tuple[int, int, int]:
        """Move the living to the other half. Only the last store, of the cursor, makes the move true."""
        grant, tail, granted = self._read()
        to = 0 if self._base(tail) else self._half + 1
        living = [at for at in range(self._start(tail), tail) if self._entries[at] & _DEAD != _DEAD]
        for offset, at in enumerate(living):
            self._entries[to + offset] = self._entries[at]
        self._first[0] = to
        self._write(to + bisect_left(living, grant), to + len(living), granted)
        return self._read()

    def _base(self, tail: int) -> int:
        """Where the half in use starts."""
        return 0 if tail <= self._half else self._half + 1

    def _start(self, tail: int) -> int:
        """An index before which nobody lives."""
        base, first = self._base(tail), self._first[0]
        return first if base <= first <= tail else base

    def _read(self) -> tuple[int, int, int]:
        cursor = self._cursor[0]
        return cursor >> 2 * _INDEX_BITS, cursor >> _INDEX_BITS & _MASK, cursor & _MASK

    def _write(self, grant: int, tail: int, granted: int) -> None:
        self._cursor[0] = grant << 2 * _INDEX_BITS | tail << _INDEX_BITS | granted
