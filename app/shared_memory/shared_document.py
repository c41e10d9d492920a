"""A document that processes replace while others read it, in two halves of an array.

A publisher writes into the half that is not in use. Then it stores one word: generation, half and length. That store
makes the document current. A publisher that is killed before it has published nothing. Readers compare the word, which
costs one read of memory, and copy the document under the lock when it differs from the one they have.
"""

from collections.abc import Callable

from app.shared_memory.table import Layout, SharedTable

_LENGTH_BITS = 24


class Superseded(Exception):
    """Another process has published meanwhile."""


def layout(name: str, max_bytes: int) -> Layout:
    """What a document of this name keeps in the table. `max_bytes` is a multiple of 8, below 16 MiB."""
    return Layout(cells=(f"{name}_cursor",), arrays={name: 2 * max_bytes // 8})


class SharedDocument:
    """A view of the document, in one process."""

    def __init__(self, table: SharedTable, name: str) -> None:
        self._lock = table.lock
        self._bytes = table.array(name).cast("B")
        self.max_bytes = len(self._bytes) // 2
        self.cursor = table.cell(f"{name}_cursor")
        """Its one word changes with every publication; 0 before the first."""

    @property
    def generation(self) -> int:
        """Grows with every publication; 0 before the first."""
        return self.cursor[0] >> _LENGTH_BITS

    def publish(
        self, content: bytes, follows: int | None = None, prepare: Callable[[int], None] = lambda _: None
    ) -> bool:
        """Make the content current. Returns whether it differs from what was.

        `follows` is the generation that was current before the content was read from its source: with it, an older
        state of the source never replaces a newer one. `prepare` is called with the generation that is current still,
        under the lock; nothing is published if it raises. Raises Superseded, or ValueError if there is no room.
        """
        if len(content) > self.max_bytes:
            raise ValueError(f"{len(content)} bytes are too many: there is room for {self.max_bytes}")
        with self._lock:
            if follows not in (None, self.generation):
                raise Superseded
            if self.generation and content == self._read():
                return False
            prepare(self.generation)
            generation = self.generation + 1
            start = generation % 2 * self.max_bytes
            self._bytes[start : start + len(content)] = content
            self.cursor[0] = generation << _LENGTH_BITS | len(content)
        return True

    def read(self) -> tuple[int, bytes]:
        """Returns the word that is current, and its document."""
        with self._lock:
            return self.cursor[0], self._read()

    def _read(self) -> bytes:
        length = self.cursor[0] & (1 << _LENGTH_BITS) - 1
        start = self.generation % 2 * self.max_bytes
        return bytes(self._bytes[start : start + length])
