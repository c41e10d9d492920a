"""The wait queue: first come, first served over all workers, kept in shared memory.

Entries stand in the order of arrival. Each is `number << 8 | slot` of the worker whose request waits; numbers only
grow. A cursor splits the queue. Invariant: **an entry before the cursor has been granted a permit** that its worker has
not picked up yet, and an entry behind it waits. A grant moves the cursor past one entry.

    first            grant            tail
      | granted, to be | waiting        |
      | picked up      |                | free space, then the other half

An entry that left (picked up, timed out, died) keeps its number and loses its slot: it is DEAD and passed over. When
the space is used up, the live entries move to the other half of the array and the cursor follows, so that no number
ever changes. One word between the halves stays unused, so that the tail alone tells which half is in use.

Every method requires the table's lock. A SIGKILL inside any of them is harmless: grant index, tail and number granted
are packed into one word, so append, grant and move each take effect with one store. `remove` takes two stores. Between
them `granted` counts one too many, which may reject a request that could have been admitted, but never admits one too
many. `evict`, which runs for every worker that dies, counts again. `queue_first` only saves walking past dead entries:
a value outside the half in use is ignored, and a move stores it before the cursor.
"""

from bisect import bisect_left

from app.shared_memory.table import SLOTS, Layout, SharedTable

_SLOT_BITS = 8
_DEAD = (1 << _SLOT_BITS) - 1
_INDEX_BITS = 20
_MASK = (1 << _INDEX_BITS) - 1
_SLACK = 64
assert SLOTS < _DEAD


def layout(capacity: int) -> Layout:
    """What a queue of `capacity` keeps in the table: its array has two halves, each with room for dead entries."""
    return Layout(
        cells=("queue_cursor", "queue_first", "queue_number"),
        arrays={"queue": 2 * _half(capacity) + 1 if capacity else 0},
    )


def _half(capacity: int) -> int:
    return 2 * capacity + _SLACK


class WaitQueue:
    """A view of the queue in one process."""

    def __init__(self, table: SharedTable, capacity: int) -> None:
        self._half = _half(capacity)
        assert 2 * self._half < _MASK
        self._entries = table.array("queue")
        self._cursor = table.cell("queue_cursor")
        self._first = table.cell("queue_first")
        self._number = table.cell("queue_number")

    def granted(self) -> int:
        """Returns the permits that were granted and not yet picked up."""
        return self._cursor[0] & _MASK

    def append(self, slot: int) -> int | None:
        """Append an entry. Returns its number, or None when the array is full of live entries."""
        grant, tail, granted = self._read()
        if tail == self._base(tail) + self._half:
            grant, tail, granted = self._move()
            if tail == self._base(tail) + self._half:
                return None
        number = self._number[0] + 1
        self._number[0] = number
        self._entries[tail] = number << _SLOT_BITS | slot
        self._write(grant, tail + 1, granted)
        return number

    def grant_next(self) -> int | None:
        """Grant a permit to the entry that waits longest. Returns the slot to notify, or None when none waits."""
        grant, tail, granted = self._read()
        while grant < tail:
            slot = self._entries[grant] & _DEAD
            grant += 1
            if slot != _DEAD:
                self._write(grant, tail, granted + 1)
                return slot
        self._write(grant, tail, granted)
        return None

    def is_granted(self, number: int) -> bool:
        """Whether the entry of this number, which has not left, was granted a permit."""
        grant, tail, _ = self._read()
        return grant >= tail or number < self._entries[grant] >> _SLOT_BITS

    def remove(self, number: int) -> None:
        """Remove an entry: it picks its permit up or, if none was granted, stops waiting."""
        grant, tail, granted = self._read()
        first = self._start(tail)
        at = bisect_left(self._entries, number << _SLOT_BITS, first, tail)
        self._entries[at] = number << _SLOT_BITS | _DEAD
        if at < grant:
            self._write(grant, tail, granted - 1)
        if at == first:
            while at < tail and self._entries[at] & _DEAD == _DEAD:
                at += 1
            self._first[0] = at

    def evict(self, slot: int) -> int:
        """Remove every entry of a dead worker. Returns how many granted permits come back with them."""
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
        """Returns the slots of the workers that have a permit to pick up."""
        grant, tail, _ = self._read()
        return {self._entries[at] & _DEAD for at in range(self._start(tail), grant)} - {_DEAD}

    def _move(self) -> tuple[int, int, int]:
        """Move the live entries to the other half. Only the last store, of the cursor, makes the move take effect."""
        grant, tail, granted = self._read()
        to = 0 if self._base(tail) else self._half + 1
        live = [at for at in range(self._start(tail), tail) if self._entries[at] & _DEAD != _DEAD]
        for offset, at in enumerate(live):
            self._entries[to + offset] = self._entries[at]
        self._first[0] = to
        self._write(to + bisect_left(live, grant), to + len(live), granted)
        return self._read()

    def _base(self, tail: int) -> int:
        """Returns where the half in use starts."""
        return 0 if tail <= self._half else self._half + 1

    def _start(self, tail: int) -> int:
        """Returns an index before which no entry is live."""
        base, first = self._base(tail), self._first[0]
        return first if base <= first <= tail else base

    def _read(self) -> tuple[int, int, int]:
        cursor = self._cursor[0]
        return cursor >> 2 * _INDEX_BITS, cursor >> _INDEX_BITS & _MASK, cursor & _MASK

    def _write(self, grant: int, tail: int, granted: int) -> None:
        self._cursor[0] = grant << 2 * _INDEX_BITS | tail << _INDEX_BITS | granted
