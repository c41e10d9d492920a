"""Counting on the request path: prometheus-client's own files, written directly.

In multi-process mode every number of prometheus-client is 8 bytes in a file that is mapped into memory. Its `inc` takes
a lock, asks for the process id, and packs the number with a timestamp that only gauges need; `observe` tries one bucket
after the other. Here the place of a number is looked up once, and then added to. The file is the same;
docs/performance.md has the figures (tests/bench/metrics.py). One process writes a file, and greenlets do not interrupt
an addition, so no lock is needed.

A number is found by prometheus-client's private names. So tests/unit/test_metric_cells.py compares it with what the
library's own methods write, and constraints.txt pins the release.
"""

import os
import weakref
from bisect import bisect_left
from typing import Any

_bound: "weakref.WeakSet[Count | Distribution]" = weakref.WeakSet()


class Count:
    """A child of a Counter."""

    __slots__ = ("__weakref__", "_at", "_child", "_file")

    def __init__(self, child: Any) -> None:
        self._child = child
        self._file: memoryview[float] | None = None
        self._at = 0

    def inc(self) -> None:
        """Count one more."""
        self.add(1.0)

    def add(self, amount: float) -> None:
        """Count so many more."""
        if self._file is None:
            self._file = _file_of(self._child._value)
            self._at = _place_of(self._child._value)
            _bound.add(self)
        self._file[self._at] += amount

    def forget(self) -> None:
        """Look the number up again: another process has another file."""
        self._file = None


class Distribution:
    """A child of a Histogram."""

    __slots__ = ("__weakref__", "_at", "_bounds", "_child", "_file")

    def __init__(self, child: Any) -> None:
        self._child = child
        self._bounds: list[float] = child._upper_bounds
        self._file: memoryview[float] | None = None
        self._at: list[int] = []
        """Where the numbers of the buckets are, and last that of the sum."""

    def observe(self, amount: float) -> None:
        """Count an amount in its bucket."""
        if self._file is None:
            values = (*self._child._buckets, self._child._sum)
            self._at = [_place_of(value) for value in values]
            self._file = _file_of(values[0])  # all are in one file, and the last look-up may have made it grow
            _bound.add(self)
        self._file[self._at[bisect_left(self._bounds, amount)]] += 1.0
        self._file[self._at[-1]] += amount

    def forget(self) -> None:
        """See `Count.forget`."""
        self._file = None


def _place_of(value: Any) -> int:
    """Returns the index of a number in its file."""
    value.get()  # makes prometheus-client open this process's file and add the entry
    at: int = value._file._positions[value._key]
    return at // 8


def _file_of(value: Any) -> "memoryview[float]":
    """Returns the numbers of the file in which a number is. The entries are aligned to eight bytes."""
    value.get()
    return memoryview(value._file._m).cast("d")


def forget_cells() -> None:
    """Look every number up again: it is in another file, or in another mapping."""
    for bound in list(_bound):
        bound.forget()
    _bound.clear()


os.register_at_fork(after_in_child=forget_cells)
