"""The routes that are current, published to all workers through the shared table.

A publisher (the arbiter at the start and on HUP, the leading worker when the file changes) writes the routes into the
half of an array that is not in use. Then it stores one word: generation, half and length. That store makes the routes
current: every worker compares the generation before every request, and reads the new routes when it differs. A worker
that is forked later does the same, whatever the file says by then. A publisher that is killed before the store has
published nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from app.errors import RoutesError
from app.native import now_ms
from app.shared_memory.counters import InflightCounters
from app.shared_memory.table import Layout, SharedTable

MAX_BYTES = 512 << 10
_WORDS = MAX_BYTES // 8
LAYOUT = Layout(cells=("routes_cursor", "routes_stale", "routes_published_ms"), arrays={"routes": 2 * _WORDS})

LENGTH_BITS = 24
"""Of the word that makes routes current: the generation is above them."""


class Part(Protocol):
    """A part of the shared state that keeps something for endpoints or models, by their ids."""

    def reset(self, shared_id: int) -> None:
        """Forget what was kept of the name that had this id. The lock is held."""


class Superseded(Exception):
    """Another process has published meanwhile."""


def generation_of(cursor: "memoryview[int]") -> int:
    """Returns the generation in the cell that `cursor_of` returns."""
    return cursor[0] >> LENGTH_BITS


def cursor_of(table: SharedTable) -> "memoryview[int]":
    """Returns the cell whose store makes routes current: generation, half and length in one word."""
    return table.cell("routes_cursor")


class RouteStore:
    """A view of what is published, in one process."""

    def __init__(
        self,
        table: SharedTable,
        counters: InflightCounters,
        parts: Sequence[Part],
        appear: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`appear` is called with the id of every name that the routes before did not have. The lock is held."""
        self._lock = table.lock
        self._bytes = table.array("routes").cast("B")
        self._cursor = cursor_of(table)
        self.stale = table.cell("routes_stale")
        """1 while the newest routes are invalid, and older ones are current in their place."""
        self._published_ms = table.cell("routes_published_ms")
        self._counters = counters
        self._parts = parts
        self._appear = appear

    @property
    def generation(self) -> int:
        """Grows with every publication; 0 before the first."""
        return generation_of(self._cursor)

    def publish(self, document: bytes, names: Iterable[str], follows: int | None = None) -> bool:
        """Make every worker serve `document`, whose endpoints and models are counted under `names`.

        `follows` is the generation from which the document was made. Returns whether it differs from what is published.
        Raises Superseded if another one than `follows` is current by now, and RoutesError if there is no room.
        """
        if len(document) > MAX_BYTES:
            raise RoutesError(f"the routes take {len(document)} bytes of shared memory; at most {MAX_BYTES} are there")
        with self._lock:
            if follows not in (None, self.generation):
                raise Superseded
            if document == self._read()[1]:
                return False
            self._counters.assign(names, self.generation, self._reset, self._appear)
            generation = self.generation + 1
            start = generation % 2 * MAX_BYTES
            self._bytes[start : start + len(document)] = document
            self._published_ms[0] = now_ms()
            self._cursor[0] = generation << LENGTH_BITS | len(document)
        return True

    def age_s(self) -> float:
        """Returns how long ago the current routes were published."""
        return max(0, now_ms() - self._published_ms[0]) / 1000

    def read(self) -> tuple[int, bytes]:
        """Returns the generation and its document."""
        with self._lock:
            return self._read()

    def peek(self) -> bytes:
        """Returns the document that is current, without the lock.

        The word grows with every publication. If it is the same after the copy as before, the half that was copied was
        in use all the time, and publishers write into the other one.
        """
        while True:
            cursor = self._cursor[0]
            content = self._read()[1]
            if self._cursor[0] == cursor:
                return content

    def _reset(self, shared_id: int) -> None:
        for part in self._parts:
            part.reset(shared_id)

    def _read(self) -> tuple[int, bytes]:
        generation, length = self.generation, self._cursor[0] & (1 << LENGTH_BITS) - 1
        start = generation % 2 * MAX_BYTES
        return generation, bytes(self._bytes[start : start + length])
