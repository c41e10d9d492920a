"""Shared state under a clock that goes only when told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol, TypeVar

import pytest

from app.shared_memory.table import SharedTable
from tests.support.forks import Parent

BEGIN_MS = 50_000_000
"""A time at which everything that lasts is over."""


class _Clock(Protocol):
    now: int


B = TypeVar("B", bound=_Clock)


@contextmanager
def under_stopped_clock(
    make: Callable[[SharedTable], B], monkeypatch: pytest.MonkeyPatch, *modules: ModuleType
) -> Iterator[B]:
    """Yields what `make` makes of a table of its own; its `now`, in milliseconds, is the time for these modules."""
    parent = Parent(limit=1)
    made = make(parent.table)
    for module in modules:
        monkeypatch.setattr(module, "now_ms", lambda: made.now)
    try:
        yield made
    finally:
        parent.close()
