"""The routes that are served now, published to all workers through the shared table.

Whoever publishes (the arbiter at the start and on HUP, the leading worker when the file changes) writes the routes
into the half of an array that is not in use, and then stores one word: generation, half and length. That store is the
moment at which they are served: every worker compares the generation before every request, and reads the new routes
when it differs. A worker forked later does the same, whatever the file says by then. A publisher killed before the
store has published nothing.
"""

from collections.abc import Iterable
from typing import Any

from app.errors import RoutesError
from app.shared_memory.counters import InflightCounters
from app.shared_memory.table import Layout, SharedTable

MAX_BYTES = 512 << 10
_WORDS = MAX_BYTES // 8
LAYOUT = Layout(cells=("published_cursor", "published_refused"), arrays={"published": 2 * _WORDS})

_LENGTH_BITS = 24


class RouteStore:
    """A view of what is published, in one process."""

    def __init__(self, table: SharedTable, usage: InflightCounters, parts: Any) -> None:
        self._table = table
        self._lock = table.lock
        self._bytes = table.array("published").cast("B")
        self._cursor = table.cell("published_cursor")
        self.refused = table.cell("published_refused")
        """1 while the newest routes are bad, and older ones are served in their place."""
        self._usage = usage
        self._parts = parts

    @property
    def generation(self) -> int:
        """Grows with every publication; 0 before the first."""
        return self._cursor[0] >> _LENGTH_BITS

    def publish(self, document: bytes, names: Iterable[str]) -> bool:
        """Have every worker serve `document`, whose endpoints and models are counted under `names`.

        Answers whether it differs from what is published. Raises RoutesError if there is no room for it.
        """
        if len(document) > MAX_BYTES:
            raise RoutesError(f"the routes take {len(document)} bytes of shared memory; at most {MAX_BYTES} are there")
        with self._lock:
            if document == self._read()[1]:
                return False
            self._usage.assign(names, self.generation, self._clear)
            generation = self.generation + 1
            start = generation % 2 * MAX_BYTES
            self._bytes[start : start + len(document)] = document
            self._cursor[0] = generation << _LENGTH_BITS | len(document)
        return True

    def read(self) -> tuple[int, bytes]:
        """The generation and its document."""
        with self._lock:
            return self._read()

    def _clear(self, place: int) -> None:
        for part in self._parts:
            part.reset(place)

    def _read(self) -> tuple[int, bytes]:
        generation, length = self.generation, self._cursor[0] & (1 << _LENGTH_BITS) - 1
        start = generation % 2 * MAX_BYTES
        return generation, bytes(self._bytes[start : start + length])
