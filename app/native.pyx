"""native.py, in Cython: what is said there holds here. Bounds are checked wherever input is read."""

import os

from cpython.mem cimport PyMem_Free
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL
    char* PyOS_double_to_string(double, char, int, int, int*) except NULL

MUTEX_BYTES = 64

cdef enum:
    SPINS = 100
    ID_WORDS = 8


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutexattr_t:
        pass
    int PTHREAD_PROCESS_SHARED
    int PTHREAD_MUTEX_ROBUST
    int pthread_mutexattr_init(pthread_mutexattr_t*)
    int pthread_mutexattr_setpshared(pthread_mutexattr_t*, int)
    int pthread_mutexattr_setrobust(pthread_mutexattr_t*, int)
    int pthread_mutex_init(pthread_mutex_t*, pthread_mutexattr_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_trylock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_mutex_consistent(pthread_mutex_t*)


cdef extern from "<errno.h>" nogil:
    int EBUSY
    int EOWNERDEAD


cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int, timespec*)


assert sizeof(pthread_mutex_t) <= MUTEX_BYTES


cdef class RobustMutex:

    def __init__(self, block, *, initialise):
        cdef pthread_mutexattr_t attributes
        self._block = block  # keeps the memory
        assert len(self._block) >= MUTEX_BYTES
        self._mutex = <pthread_mutex_t*><void*>&self._block[0]
        if initialise:
            _check(pthread_mutexattr_init(&attributes))
            _check(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED))
            _check(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST))
            _check(pthread_mutex_init(self._mutex, &attributes))

    cpdef acquire(self):
        # It is held for a microsecond or less. Trying for a little longer than that spares nearly every wait, each of
        # which costs two system calls here and one of the holder.
        cdef int status = EBUSY, tries = 0
        while status == EBUSY and tries < SPINS:
            status = pthread_mutex_trylock(self._mutex)
            tries += 1
        if status == EBUSY:
            status = pthread_mutex_lock(self._mutex)
        if status:
            if status != EOWNERDEAD:
                _check(status)
            _check(pthread_mutex_consistent(self._mutex))

    cpdef release(self):
        pthread_mutex_unlock(self._mutex)

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_):
        self.release()


cdef int64_t _stopped_ns = -1


cpdef stop_clock(int64_t at_ns):
    global _stopped_ns
    _stopped_ns = at_ns


cpdef double monotonic() noexcept:
    cdef timespec now
    if _stopped_ns >= 0:
        return _stopped_ns * 1e-9
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cpdef int64_t now_ms() noexcept:
    cdef timespec now
    if _stopped_ns >= 0:
        return _stopped_ns // 1000000
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef _check(int status):
    if status:
        raise OSError(status, os.strerror(status))


# What a character may be a part of. `data[at]` below is checked: an index beyond the end raises IndexError.
cdef enum:
    NAME = 1
    VALUE = 2
    TARGET = 4

cdef unsigned char[256] _parts


cdef _fill():
    cdef int c
    for c in range(256):
        _parts[c] = 0
        if c == 9 or 32 <= c < 127 or c > 127:
            _parts[c] |= VALUE
        if 33 <= c < 127 and c != 35:
            _parts[c] |= TARGET
    for c in b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
        _parts[c] |= NAME


_fill()


cpdef tuple split_request(bytes data, Py_ssize_t longest):
    cdef Py_ssize_t end = min(len(data), longest), at, begin
    cdef str method, target
    cdef list fields
    if data.startswith(b"POST "):
        method, at = "POST", 5
    elif data.startswith(b"GET "):
        method, at = "GET", 4
    elif data.startswith(b"HEAD "):
        method, at = "HEAD", 5
    else:
        return None
    begin = at
    if at >= end or data[at] != b"/":
        return None
    while at < end and _parts[<unsigned char>data[at]] & TARGET:
        at += 1
    if not _follows(data, at, end, b" HTTP/1.1"):
        return None
    target = data[begin:at].decode("latin-1")
    at += 9
    fields = []
    at = _read_fields(data, at, end, fields, False)
    if at < 0 or not _follows(data, at, end, b"\r\n\r\n"):
        return None
    return method, target, fields, at + 4


cpdef tuple split_response(bytes data):
    cdef Py_ssize_t end = len(data), at = 12
    cdef unsigned char minor, first, second, third
    cdef list fields
    if not data.startswith(b"HTTP/1.") or end < 12 or data[8] != b" ":
        return None
    minor, first, second, third = data[7], data[9], data[10], data[11]
    if not (48 <= minor < 58 and 49 <= first < 54 and 48 <= second < 58 and 48 <= third < 58):
        return None
    if at < end and data[at] == b" ":
        while at < end and _parts[<unsigned char>data[at]] & VALUE:
            at += 1
    fields = []
    at = _read_fields(data, at, end, fields, True)
    if at != end:
        return None
    return minor - 48, (first - 48) * 100 + (second - 48) * 10 + third - 48, fields


cdef bint _follows(bytes data, Py_ssize_t at, Py_ssize_t end, bytes expected) except -1:
    """Whether these bytes come next, before `end`."""
    cdef Py_ssize_t index
    if at + len(expected) > end:
        return False
    for index in range(len(expected)):
        if data[at + index] != expected[index]:
            return False
    return True


cdef Py_ssize_t _read_fields(bytes data, Py_ssize_t at, Py_ssize_t end, list fields, bint response) except? -2:
    """Append the field lines from `at` on, each after a line end. Returns where the last one ends; -1: one is malformed.

    Of a request, no name with _ is taken. Of a response, names are in lower case.
    """
    cdef Py_ssize_t begin, colon, after
    cdef str name
    while at + 2 < end and data[at] == b"\r" and data[at + 1] == b"\n" and data[at + 2] != b"\r":
        begin = colon = at + 2
        while colon < end and _parts[<unsigned char>data[colon]] & NAME and (response or data[colon] != b"_"):
            colon += 1
        if colon == begin or colon == end or data[colon] != b":":
            return -1
        name = data[begin:colon].decode("latin-1")
        begin = after = colon + 1
        while after < end and _parts[<unsigned char>data[after]] & VALUE:
            after += 1
        at = after
        while begin < after and (data[begin] == b" " or data[begin] == b"\t"):
            begin += 1
        while begin < after and (data[after - 1] == b" " or data[after - 1] == b"\t"):
            after -= 1
        fields.append((name.lower() if response else name, data[begin:after].decode("latin-1")))
    return at


cpdef bytes join_response(str status, list fixed, list fields):
    cdef list parts = ["HTTP/1.1 ", status]
    cdef Py_ssize_t index
    cdef str text, name, value
    cdef tuple field
    if len(status) < 4 or status[3] != " ":
        _refuse()
    for index in range(len(status)):
        if index < 3:
            if not 48 <= ord(status[index]) < 58:
                _refuse()
        elif not _may_be(status[index], VALUE):
            _refuse()
    for some in (fixed, fields):
        for field in some:
            name, value = field
            _check_text(name, NAME)
            if not name:
                _refuse()
            _check_text(value, VALUE)
            parts += ("\r\n", name, ": ", value)
    parts.append("\r\n\r\n")
    return "".join(parts).encode("latin-1")


cdef _check_text(str text, int part):
    cdef Py_UCS4 c
    for c in text:
        if not _may_be(c, part):
            _refuse()


cdef inline bint _may_be(Py_UCS4 c, int part) noexcept:
    return c < 256 and _parts[c] & part != 0


cdef _refuse():
    raise ValueError("the status or a header of the response has characters that are not allowed")


cpdef tuple plain_usage(bytes text, Py_ssize_t at):
    cdef object given = None, output = None, count
    cdef Py_ssize_t begin, end
    cdef int64_t number
    at = _past_blanks(text, at)
    if _byte(text, at) != c':':
        return None
    at = _past_blanks(text, at + 1)
    if _byte(text, at) != c'{':
        return None
    while True:
        at = _past_blanks(text, at + 1)
        if _byte(text, at) != c'"':
            return None
        begin = end = at + 1
        while c'a' <= _byte(text, end) <= c'z' or _byte(text, end) == c'_':
            end += 1
        if _byte(text, end) != c'"':
            return None
        at = _past_blanks(text, end + 1)
        if _byte(text, at) != c':':
            return None
        at = _past_blanks(text, at + 1)
        if _follows(text, at, len(text), b"null"):
            count = None
            at += 4
        elif c'0' <= _byte(text, at) <= c'9':
            number = _byte(text, at) - c'0'
            at += 1
            while 0 < number < 100000000000 and c'0' <= _byte(text, at) <= c'9':  # 12 digits; none after a zero
                number = 10 * number + (_byte(text, at) - c'0')
                at += 1
            count = number
        else:
            return None
        if _is(text, begin, end, b"prompt_tokens"):
            given = count
        elif _is(text, begin, end, b"completion_tokens"):
            output = count
        elif count is not None and not _is(text, begin, end, b"total_tokens"):
            return None
        at = _past_blanks(text, at)
        if _byte(text, at) == c'}':
            return None if given is None else (given, output)
        if _byte(text, at) != c',':
            return None


cdef inline unsigned char _byte(bytes text, Py_ssize_t at) noexcept:
    """Returns the byte at an index that is not negative; beyond the end: 0."""
    return (<const unsigned char*>text)[at] if at < len(text) else 0


cdef inline Py_ssize_t _past_blanks(bytes text, Py_ssize_t at) noexcept:
    while _byte(text, at) in (c' ', c'\n', c'\r', c'\t'):
        at += 1
    return at


cdef inline bint _is(bytes text, Py_ssize_t begin, Py_ssize_t end, bytes name) except -1:
    return end - begin == len(name) and _follows(text, begin, end, name)


cpdef str server_timing(double queue_s, double model_s, double total_s):
    return f"queue;dur={_ms(queue_s)}, model;dur={_ms(model_s)}, total;dur={_ms(total_s)}"


cpdef int64_t store_id(int64_t[::1] words, Py_ssize_t at, str text) except -1:
    cdef Py_ssize_t length
    cdef const char* source = PyUnicode_AsUTF8AndSize(text, &length)
    cdef char* place
    if not 0 <= at <= words.shape[0] - ID_WORDS:
        raise IndexError(f"no room for {ID_WORDS} words at {at}")
    place = <char*>&words[at]
    if length < 8 * ID_WORDS:
        memcpy(place, source, length)
        memset(place + length, 0, 8 * ID_WORDS - length)
    else:
        memcpy(place, source, 8 * ID_WORDS)
    return length | <int64_t>_crc32(source, length) << 8


cdef uint32_t[256] _crc_table


def _fill_crc_table():
    cdef uint32_t value
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        _crc_table[byte] = value


_fill_crc_table()


cdef uint32_t _crc32(const char* text, Py_ssize_t length) noexcept:
    """The CRC of zlib. To call zlib through Python would cost more than all that is stored of a request."""
    cdef uint32_t value = 0xFFFFFFFF
    cdef Py_ssize_t at
    for at in range(length):
        value = (value >> 8) ^ _crc_table[(value ^ <unsigned char>text[at]) & 0xFF]
    return value ^ 0xFFFFFFFF


cdef uint64_t _first, _second


def _seed():
    global _first, _second
    seed = os.urandom(16)
    _first = int.from_bytes(seed[:8], "little")
    _second = int.from_bytes(seed[8:], "little")


_seed()
os.register_at_fork(after_in_child=_seed)


cpdef str new_id():
    global _first, _second
    cdef char[33] text
    _first += <uint64_t>0x9E3779B97F4A7C15ULL
    _second += <uint64_t>0xD1B54A32D192ED03ULL
    snprintf(text, 33, "%016llx%016llx", <unsigned long long>_mixed(_first), <unsigned long long>_mixed(_second))
    return text[:32].decode("ascii")


cdef uint64_t _mixed(uint64_t state) noexcept:
    """Returns the output of splitmix64 (Steele, Lea and Flood, 2014) for a state."""
    state = (state ^ (state >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * <uint64_t>0x94D049BB133111EB
    return state ^ (state >> 31)


cdef str _ms(double seconds):
    cdef char* text = PyOS_double_to_string(seconds * 1e3, b"f", 3, 0, NULL)
    if text is NULL:
        raise MemoryError
    try:
        return text.decode("ascii")
    finally:
        PyMem_Free(text)
