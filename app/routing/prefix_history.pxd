cimport cython
from libc.stdint cimport int64_t, uint64_t


cdef uint64_t _SPREAD, _MASK, _BUCKETS, _TAG
cdef Py_ssize_t _WAYS
cdef int64_t _SEEN, _ENDPOINT
cdef int _SEEN_BITS, _TAG_SHIFT, _BUCKET_BITS

@cython.locals(size=Py_ssize_t, start=Py_ssize_t, length=Py_ssize_t)
cpdef bytes beginnings(prompt, Py_ssize_t most)


cdef class PrefixHistory:
    cdef int64_t[::1] _entries

    @cython.locals(place=Py_ssize_t, value=uint64_t, mixed=uint64_t, start=Py_ssize_t, at=Py_ssize_t, tag=int64_t, entry=int64_t)
    cpdef find(self, bytes key, uint64_t pool, below=*)
    @cython.locals(now=int64_t, value=uint64_t)
    cpdef remember(self, bytes key, uint64_t pool, int64_t endpoint, match)
    @cython.locals(
        start=Py_ssize_t, at=Py_ssize_t, oldest=Py_ssize_t, ours_oldest=Py_ssize_t, same=int, tag=int64_t, ours=int64_t,
        entry=int64_t, age=int64_t, age_of_oldest=int64_t, age_of_ours=int64_t
    )
    cdef _store(self, uint64_t mixed, int64_t endpoint, int64_t now)
