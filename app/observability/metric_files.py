"""The files of prometheus-client, on a filesystem that may be full.

A number of a metrics file is written through a memory mapping. Where the filesystem has no block left for the page, the
kernel ends the process by SIGBUS, in the middle of a request. So the blocks are reserved when a file is made and when
it grows (posix_fallocate(3)). If that fails, the numbers are kept in memory until there is room, and `/metrics` lacks
them so long. A gauge of the shared table says so, because no file can.
"""

import mmap
import os
import struct
from collections.abc import Callable
from typing import Any

import structlog
from prometheus_client.mmap_dict import MmapedDict

from app.observability.metric_cells import forget_cells
from app.shared_memory.table import Layout, SharedTable

LAYOUT = Layout(columns=("metric_files_in_memory",))

_FIRST_BYTES = 1 << 16
_HEAD_BYTES = 8
"""A file begins with the number of bytes that are used, these included."""
_MOST_BESIDE_KEY = 32
"""A number takes up to so many bytes beside its key."""

_log = structlog.get_logger("router.metrics")


class MetricFiles:
    """The files of one process. A worker attaches them to its slot."""

    def __init__(self, table: SharedTable) -> None:
        self._in_memory_by_slot = table.column("metric_files_in_memory")
        self._in_memory: list[_ReservedFile] = []
        self._slot: int | None = None

    def attach(self, slot: int) -> None:
        """Count for this slot. The worker calls this before it counts anything: the arbiter's files are not its own."""
        self._slot = slot
        self._in_memory.clear()

    def open(self, path: str) -> MmapedDict:
        """Returns the file as prometheus-client writes it."""
        return _ReservedFile(path, self._enter_memory)

    def reserve_again(self) -> None:
        """Move to the filesystem what found no room there before. Runs every second."""
        if not self._in_memory:
            return
        self._in_memory = [file for file in self._in_memory if not file.leave_memory()]
        forget_cells()
        self._show()
        if not self.total():
            _log.info("metrics are written to their files again")

    def total(self) -> int:
        """Returns how many files are kept in memory, over all workers."""
        return sum(self._in_memory_by_slot)

    def release_row(self, slot: int) -> int:
        """Forget the files of a dead worker. Returns 0: there are no permits among them. The lock is held."""
        self._in_memory_by_slot[slot] = 0
        return 0

    def _enter_memory(self, file: "_ReservedFile", reason: OSError) -> None:
        forget_cells()
        self._in_memory.append(file)
        if len(self._in_memory) == 1 and not self.total():
            _log.warning(
                "metrics are kept in memory, and missing on /metrics, until their filesystem has room",
                file=reason.filename,
                reason=reason.strerror,
            )
        self._show()

    def _show(self) -> None:
        if self._slot is not None:
            self._in_memory_by_slot[self._slot] = len(self._in_memory)


class _ReservedFile(MmapedDict):
    """A file whose blocks are reserved, or anonymous memory with the same content.

    It takes over from the base class, which has no types, where a file is made and where it grows. `_m` is the mapping
    and `_capacity` its size, of which `_used` is used. `_positions` has the places of the numbers. `_f` is the open
    file, or None for memory.
    """

    _f: Any

    def __init__(self, path: str, enter_memory: Callable[["_ReservedFile", OSError], None]) -> None:
        self._enter_memory = enter_memory
        try:
            _reserve(path, _FIRST_BYTES)
            super().__init__(path)  # type: ignore[no-untyped-call]
        except OSError as error:  # no room, or no descriptor
            self._fname = path
            self._f = None
            self._map_memory(_content(path) or struct.pack("ii", _HEAD_BYTES, 0), _FIRST_BYTES)
            self._used = struct.unpack_from("i", self._m)[0]
            self._positions = {key: at for key, _, _, at in self._read_all_values()}  # type: ignore[no-untyped-call]
            enter_memory(self, error)

    def leave_memory(self) -> bool:
        """Write the content to the file and map that again. Returns whether there was room."""
        try:
            _reserve(self._fname, self._capacity)
            file = open(self._fname, "r+b")  # noqa: SIM115  # the base class closes it
        except OSError:
            return False
        try:
            # The head, which says how much is used, is written last: a scrape finds the old content or the new.
            os.pwrite(file.fileno(), self._m[_HEAD_BYTES : self._used], _HEAD_BYTES)
            os.pwrite(file.fileno(), self._m[:_HEAD_BYTES], 0)
            self._m = mmap.mmap(file.fileno(), self._capacity)
        except OSError:
            file.close()
            return False
        self._f = file
        return True

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + _MOST_BESIDE_KEY > self._capacity:
            self._grow()
        super()._init_value(key)  # type: ignore[no-untyped-call]  # finds room, so it does not grow the file itself

    def _grow(self) -> None:
        capacity = 2 * self._capacity
        if self._f is None:
            self._map_memory(self._m[: self._used], capacity)
            return
        try:
            _reserve(self._fname, capacity)
            self._m, self._capacity = mmap.mmap(self._f.fileno(), capacity), capacity
        except OSError as error:
            self._f.close()
            self._f = None
            self._map_memory(self._m[: self._used], capacity)
            self._enter_memory(self, error)

    def _map_memory(self, content: bytes, capacity: int) -> None:
        self._capacity = max(capacity, len(content))
        self._m = mmap.mmap(-1, self._capacity)
        self._m[: len(content)] = content


def _reserve(path: str, size: int) -> None:
    """Make the file if there is none, and reserve at least `size` bytes for it. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, max(size, os.fstat(descriptor).st_size))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def _content(path: str) -> bytes:
    """Returns what an earlier worker left in the file, or nothing."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
