"""Counting on the request path: prometheus-client's own files, written without its detours.

In multi-process mode every number of prometheus-client is 8 bytes in a file that is mapped into memory. Its `inc` takes
a lock, asks for the process's identity, and packs the number and a timestamp that only gauges need; `observe` tries one
bucket after the other. Here the 8 bytes are looked up once, and then added to: the same file, read by the same
collector, at about a tenth of the cost (tests/bench/metrics.py). One process writes a file, and greenlets don't
interrupt an addition, so no lock is needed.

A number is found by prometheus-client's private names, so tests/unit/test_metric_cells.py holds it to what its own
methods would have written, and pins in constraints.txt say which release that was.
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
        """Look the number up again: this is another process now, with another file."""
        self._cell = None


class Distribution:
    """A child of a Histogram."""

    __slots__ = ("__weakref__", "_bounds", "_cells", "_child")

    def __init__(self, child: Any) -> None:
        self._child = child
        self._bounds: list[float] = child._upper_bounds
        self._cells: list[memoryview[float]] = []
        """Of the buckets, and of the sum."""

    def observe(self, amount: float) -> None:
        """Enter an amount in its bucket."""
        cells = self._cells or self._look_up()
        cells[bisect_left(self._bounds, amount)][0] += 1.0
        cells[-1][0] += amount

    def forget(self) -> None:
        """See Count."""
        self._cells = []

    def _look_up(self) -> "list[memoryview[float]]":
        self._cells = [_cell_of(value) for value in (*self._child._buckets, self._child._sum)]
        _bound.add(self)
        return self._cells


def _cell_of(value: Any) -> "memoryview[float]":
    value.get()  # has prometheus-client open this process's file, and make the entry
    at = value._file._positions[value._key]
    return memoryview(value._file._m)[at : at + 8].cast("d")


def _forget_all() -> None:
    for bound in list(_bound):
        bound.forget()
    _bound.clear()


os.register_at_fork(after_in_child=_forget_all)
