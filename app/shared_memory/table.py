"""The memory that all workers share: a table of counters, the lock over it, and a bell per worker.

The table has a row per worker slot and a column per counter, all 64-bit integers; beside it stand named single
cells and named arrays. What takes permits (`inflight`, `queued`, the line) and who owns a row is written under the lock
only. `service_us`, an estimate, is written by its row's worker alone, and `draining` by its arbiter.

**The lock dies with its holder.** It is a robust, process-shared POSIX mutex inside the block (pthread_mutexattr_
setrobust(3)). When a process is SIGKILLed while holding it, the kernel frees it and the next to lock is told so
(EOWNERDEAD); `multiprocessing.Lock` would hang every survivor for ever. A `fcntl` lock has the same property, but
costs three times as much a turn (tests/bench/limiter.py prints both). It excludes processes, not the
greenlets of one process: nothing may yield while it is held. A holder that is frozen (SIGSTOP) and not killed holds it
on, and everybody waits until it is thawed or killed.

**What a dead holder leaves behind** is a prefix of its stores. So whoever writes under the lock commits with a single
aligned store, and orders its stores so that every prefix is safe: a permit may be missing for a moment, never double.

The block is an anonymous file (memfd_create(2)): workers inherit it by fork, a new binary (USR2) by exec, and nothing
is left when the last process ends. The eventfds are eventfds, inherited the same way.
"""

import ctypes
import errno
import hashlib
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial

from app.errors import SharedStateMismatch

SLOTS = 64
"""Rows: how many workers can live at once. HUP, TTIN and USR2 make more of them live than WEB_CONCURRENCY."""

_WORD = 8
_MUTEX_BYTES = 64  # sizeof(pthread_mutex_t) is 40 on x86-64 and 48 on arm64, with glibc and musl alike
_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1
_MFD_CLOEXEC = 1

# PyDLL keeps the interpreter lock during the call: cheaper, and a worker has no second thread that could need it.
_libc = ctypes.PyDLL(None)


class RobustMutex:
    """A mutex in shared memory that a process can't take with it into its grave."""

    __slots__ = ("_address", "_lock", "release")

    def __init__(self, block: mmap.mmap, *, initialise: bool) -> None:
        """`block` starts with the mutex; `initialise` once, before anyone else can see the block."""
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        _libc.pthread_mutex_lock.argtypes = _libc.pthread_mutex_unlock.argtypes = [ctypes.c_void_p]
        self._lock = partial(_libc.pthread_mutex_lock, self._address)
        self.release = partial(_libc.pthread_mutex_unlock, self._address)
        """Let others have it. With `acquire`, in a try block, it does what `with` does at half the cost."""
        if initialise:
            attributes = ctypes.create_string_buffer(_MUTEX_BYTES)
            mutex = ctypes.c_void_p(self._address)
            _check(_libc.pthread_mutexattr_init(attributes))
            _check(_libc.pthread_mutexattr_setpshared(attributes, _PTHREAD_PROCESS_SHARED))
            _check(_libc.pthread_mutexattr_setrobust(attributes, _PTHREAD_MUTEX_ROBUST))
            _check(_libc.pthread_mutex_init(mutex, attributes))

    def acquire(self) -> None:
        """Wait until nobody else has it."""
        status = self._lock()
        if status:
            if status != errno.EOWNERDEAD:
                _check(status)
            # The holder was killed. Its stores are a prefix of a safe sequence (see the top), and its row is
            # reclaimed when its parent reaps it, so there is nothing to undo here.
            _check(_libc.pthread_mutex_consistent(ctypes.c_void_p(self._address)))

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class SharedTable:
    """Columns of `SLOTS` rows, single cells and named arrays, over one block of shared memory."""

    def __init__(
        self,
        columns: Sequence[str],
        cells: Sequence[str],
        arrays: Mapping[str, int],
        *,
        identity: str = "",
        inherited: str | None = None,
    ) -> None:
        """Make the block, or adopt the one that `handover()` described to the program before this one.

        `arrays` gives the words of each.
        `identity` names what must be equal in both programs (the limits), beside the layout.
        """
        layout = f"{SLOTS} {list(columns)} {list(cells)} {dict(arrays)} {identity}"
        signature = name_hash(layout)
        words = _MUTEX_BYTES // _WORD + 1 + len(cells) + len(columns) * SLOTS + sum(arrays.values())
        if inherited is None:
            self._fd = os.memfd_create("router", _MFD_CLOEXEC)
            os.ftruncate(self._fd, words * _WORD)
            self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(SLOTS)]
        else:
            self._fd, *self.eventfds = (int(fd) for fd in inherited.split(","))
            if os.fstat(self._fd).st_size != words * _WORD:
                raise SharedStateMismatch(_MISMATCH)
            for fd in (self._fd, *self.eventfds):
                os.set_inheritable(fd, False)
        block = mmap.mmap(self._fd, words * _WORD)
        view = memoryview(block).cast("q")
        self.lock = RobustMutex(block, initialise=inherited is None)
        self._cells: memoryview[int] = view[_MUTEX_BYTES // _WORD :]
        if inherited is None:
            self._cells[0] = signature
        elif self._cells[0] != signature:
            raise SharedStateMismatch(_MISMATCH)
        self._columns = {name: 1 + len(cells) + i * SLOTS for i, name in enumerate(columns)}
        self._index = {name: 1 + i for i, name in enumerate(cells)}
        self._arrays: dict[str, tuple[int, int]] = {}
        at = 1 + len(cells) + len(columns) * SLOTS
        for name, length in arrays.items():
            self._arrays[name] = (at, at + length)
            at += length

    def column(self, name: str) -> "memoryview[int]":
        """The counters called `name`, one a slot; writes go to the shared memory."""
        start = self._columns[name]
        return self._cells[start : start + SLOTS]

    def cell(self, name: str) -> "memoryview[int]":
        """The single counter called `name`, as a view of length 1."""
        at = self._index[name]
        return self._cells[at : at + 1]

    def array(self, name: str) -> "memoryview[int]":
        """The array called `name`, behind the columns."""
        start, end = self._arrays[name]
        return self._cells[start:end]

    def notify(self, slot: int) -> None:
        """Wake the worker in `slot`: its bell becomes readable. Ringing twice is ringing once."""
        try:
            os.eventfd_write(self.eventfds[slot], 1)
        except BlockingIOError:  # 2**64 - 2 rings that nobody heard: it is readable as it is
            pass

    def handover(self) -> str:
        """Let the next program that this process executes inherit the block; what `inherited` takes there."""
        fds = [self._fd, *self.eventfds]
        for fd in fds:
            os.set_inheritable(fd, True)
        return ",".join(str(fd) for fd in fds)


def name_hash(name: str) -> int:
    """A name as a word that is not 0, the same in every process, and for all purposes its own."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:_WORD], "little", signed=True) or 1


def now_ms() -> int:
    """Milliseconds of the machine's monotonic clock, which all processes share."""
    return time.monotonic_ns() // 1_000_000


_MISMATCH = (
    "the running server's shared memory has another layout or other limits than this program: "
    "a binary upgrade (USR2) needs the same MAX_CONCURRENCY, QUEUE_SIZE and table; restart instead"
)


def _check(status: int) -> None:
    if status:
        raise OSError(status, os.strerror(status))
