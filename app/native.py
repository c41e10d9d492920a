"""What costs least in C: the heads of HTTP messages, the lock of the shared table, and the clock.

native.pyx has the same in Cython, which is used where it was compiled. This module is its reference: whatever it
accepts or refuses, the other does too (tests/unit/test_native.py).
"""

import ctypes
import errno
import mmap
import os
import random
import re
import time
from functools import partial
from zlib import crc32

from app.http_fields import FIELD_NAME, FIELD_VALUE, FIELDS, Headers

MUTEX_BYTES = 64  # sizeof(pthread_mutex_t) is 40 on x86-64 and 48 on arm64, with glibc and musl alike
_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1

_REQUEST = re.compile(  # possessive (++): no head, however malformed, takes longer than one pass to find unusual
    r"(GET|HEAD|POST) (/[!-\"$-~]*+) HTTP/1\.1"  # no # in a path
    rf"((?>(?:\r\n{FIELD_NAME.replace('_', '')}:{FIELD_VALUE})*))"  # no _ in a name
    r"\r\n\r\n".encode()
)
_RESPONSE = re.compile(rf"HTTP/1\.([0-9]) ([1-5]\d\d)(?: {FIELD_VALUE})?({FIELDS})".encode())
_FIELD = re.compile(r"\r\n([^:]+):([^\r]*)")
_WRITTEN = re.compile(rf"HTTP/1\.1 [0-9]{{3}} {FIELD_VALUE}\r\n(?>(?:{FIELD_NAME}: {FIELD_VALUE}\r\n)*)\r\n")
_BLANK = rb"[ \t\r\n]*+"
_COUNT = rb'%b"([a-z_]*+)"%b:%b(null|0|[1-9][0-9]{0,11}+)%b' % ((_BLANK,) * 4)
_COUNTS = re.compile(rb"%b:%b\{%b(?>(?:,%b)*)\}" % (_BLANK, _BLANK, _COUNT, _COUNT))
_EACH_COUNT = re.compile(_COUNT)
_ID_WORDS = 8
_OTHER_LINES = 2  # the status, and the empty one

# PyDLL keeps the interpreter lock during the call. That is cheaper, and a worker has no second thread that needs it.
_libc = ctypes.PyDLL(None)


class RobustMutex:
    """A mutex in shared memory that is released when its holder dies."""

    __slots__ = ("_address", "_lock", "release")

    def __init__(self, block: mmap.mmap, *, initialise: bool) -> None:
        """`block` starts with the mutex. Pass `initialise` once, before another process can see the block."""
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        _libc.pthread_mutex_lock.argtypes = _libc.pthread_mutex_unlock.argtypes = [ctypes.c_void_p]
        self._lock = partial(_libc.pthread_mutex_lock, self._address)
        self.release = partial(_libc.pthread_mutex_unlock, self._address)
        """Release the mutex. `acquire` and this in a try statement cost half of what `with` costs."""
        if initialise:
            attributes = ctypes.create_string_buffer(MUTEX_BYTES)
            mutex = ctypes.c_void_p(self._address)
            _check(_libc.pthread_mutexattr_init(attributes))
            _check(_libc.pthread_mutexattr_setpshared(attributes, _PTHREAD_PROCESS_SHARED))
            _check(_libc.pthread_mutexattr_setrobust(attributes, _PTHREAD_MUTEX_ROBUST))
            _check(_libc.pthread_mutex_init(mutex, attributes))

    def acquire(self) -> None:
        """Wait for the mutex and take it."""
        status = self._lock()
        if status:
            if status != errno.EOWNERDEAD:
                _check(status)
            # The holder was killed. Its stores are a prefix of a safe sequence (shared_memory/table.py), and its row is
            # reclaimed when its parent reaps it. So there is nothing to undo here.
            _check(_libc.pthread_mutex_consistent(ctypes.c_void_p(self._address)))

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def split_request(data: bytes, longest: int) -> tuple[str, str, Headers, int] | None:
    """Returns method, target and fields of the ordinary request that `data` begins with, and where its head ends.

    Returns None for a request that is not ordinary (server/fast_path.py), or whose head is not complete within
    `longest` bytes.
    """
    found = _REQUEST.match(data, 0, longest)
    if found is None:
        return None
    method, target, block = (text.decode("latin-1") for text in found.groups())
    return method, target, [(name, value.strip(" \t")) for name, value in _FIELD.findall(block)], found.end()


def split_response(data: bytes) -> tuple[int, int, Headers] | None:
    """Returns the minor version, the status and the fields of the head of a response, names in lower case.

    `data` is the head without the empty line. Returns None if it does not match the grammar (RFC 9112 section 4).
    """
    found = _RESPONSE.fullmatch(data)
    if found is None:
        return None
    minor, status, block = found.groups()
    fields = [(name.lower(), value.strip(" \t")) for name, value in _FIELD.findall(block.decode("latin-1"))]
    return int(minor), int(status), fields


def join_response(status: str, fixed: Headers, fields: Headers) -> bytes:
    """Returns the head of a response, with the fields of both lists.

    Raises ValueError if the status or a field has characters that are not allowed: what is written must be read as it
    was meant.
    """
    head = "\r\n".join((f"HTTP/1.1 {status}", *map(": ".join, fixed), *map(": ".join, fields), "\r\n"))
    lines = len(fixed) + len(fields) + _OTHER_LINES
    if head.count("\n") != lines or not _WRITTEN.fullmatch(head):
        raise ValueError("the status or a header of the response has characters that are not allowed")
    return head.encode("latin-1")


def server_timing(queue_s: float, model_s: float, total_s: float) -> str:
    """Returns the value of Server-Timing (W3C): milliseconds in the queue, in the model, and in all so far."""
    return f"queue;dur={queue_s * 1e3:.3f}, model;dur={model_s * 1e3:.3f}, total;dur={total_s * 1e3:.3f}"


def plain_usage(text: bytes, at: int) -> tuple[int, int | None] | None:
    """Returns `prompt_tokens` and `completion_tokens` of a member `usage` whose colon comes at this index.

    None if it has any count beside these and `total_tokens` (null is none), or anything but counts.
    """
    found = _COUNTS.match(text, at)
    if found is None:
        return None
    given = output = None
    for name, number in _EACH_COUNT.findall(found[0]):
        count = None if number == b"null" else int(number)
        if name == b"prompt_tokens":
            given = count
        elif name == b"completion_tokens":
            output = count
        elif count is not None and name != b"total_tokens":
            return None
    return None if given is None else (given, output)


def store_id(words: "memoryview[int]", at: int, text: str) -> int:
    """Store the first 64 bytes of a text in 8 words from this index on, filled up with zeros.

    Returns the length of the text in bytes, and above 8 bits its CRC-32. Raises IndexError where there is no room.
    """
    encoded = text.encode()
    if not 0 <= at <= len(words) - _ID_WORDS:
        raise IndexError(f"no room for {_ID_WORDS} words at {at}")
    words[at : at + _ID_WORDS] = memoryview(encoded[: 8 * _ID_WORDS].ljust(8 * _ID_WORDS, b"\0")).cast("q")
    return len(encoded) | crc32(encoded) << 8


def new_id() -> str:
    """Returns 128 random bits as 32 hexadecimal digits. Other processes get others, also after a fork."""
    return f"{random.getrandbits(128):032x}"


_stopped_ns = -1


def stop_clock(at_ns: int) -> None:
    """Let `monotonic` and `now_ms` return this time from now on, until it is set again. No server does so.

    It is for simulations of what reads the clock. They run the same code, compiled or not, and get the same results.
    """
    global _stopped_ns  # noqa: PLW0603  # the clock is one of the process
    _stopped_ns = at_ns


def monotonic() -> float:
    """Returns seconds of the machine's monotonic clock, which all processes share."""
    return time.monotonic() if _stopped_ns < 0 else _stopped_ns * 1e-9


def now_ms() -> int:
    """Returns milliseconds of the same clock."""
    return (time.monotonic_ns() if _stopped_ns < 0 else _stopped_ns) // 1_000_000


def _check(status: int) -> None:
    if status:
        raise OSError(status, os.strerror(status))
