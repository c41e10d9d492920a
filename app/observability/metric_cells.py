"""Counting on the request path: prometheus-client's own files, written directly.

In multi-process mode every number of prometheus-client is 8 bytes in a file that is mapped into memory. Its `inc` takes
a lock, asks for the process id, and packs the number with a timestamp that only gauges need; `observe` tries one bucket
after the other. Here the 8 bytes are looked up once, and then added to. The file and the collector that reads it
are the same; docs/performance.md has the figures (tests/bench/metrics.py). One process writes a file, and greenlets do
not interrupt an addition, so no lock is needed.

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

    __slots__ = ("__weakref__", "_cell", "_child")

    def __init__(self, child: Any) -> None:
        self._child = child
        self._cell: memoryview[float] | None = None

    def inc(self) -> None:
        """Count one more."""
        cell = self._cell
        if cell is None:
            cell = self._cell = _cell_of(self._child._value)
            _bound.add(self)
        cell[0] += 1.0

    def forget(self) -> None:
        """Look the number up again: another process has another file."""
        self._cell = None


class Distribution:
    """A child of a Histogram."""

    __slots__ = ("__weakref__", "_bounds", "_cells", "_child")

    def __init__(self, child: Any) -> None:
        self._child = child
        self._bounds: list[float] = child._upper_bounds
        self._cells: list[memoryview[float]] = []
        """Those of the buckets, and last that of the sum."""

    def observe(self, amount: float) -> None:
        """Count an amount in its bucket."""
        cells = self._cells or self._look_up()
        cells[bisect_left(self._bounds, amount)][0] += 1.0
        cells[-1][0] += amount

    def forget(self) -> None:
        """See `Count.forget`."""
        self._cells = []

    def _look_up(self) -> "list[memoryview[float]]":
        self._cells = [_cell_of(value) for value in (*self._child._buckets, self._child._sum)]
        _bound.add(self)
        return self._cells


def _cell_of(value: Any) -> "memoryview[float]":
    value.get()  # makes prometheus-client open this process's file and add the entry
    at = value._file._positions[value._key]
    return memoryview(value._file._m)[at : at + 8].cast("d")


def forget_cells() -> None:
    """Look every number up again: it is in another file, or in another mapping."""
    for bound in list(_bound):
        bound.forget()
    _bound.clear()


os.register_at_fork(after_in_child=forget_cells)
