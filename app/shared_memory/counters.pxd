from libc.stdint cimport int64_t


cdef class InflightCounters:
    cdef int64_t[::1] _counts
    cdef object _names
    cdef object _generations
    cdef int64_t[::1] _rows
    cdef int64_t[::1] _row

    cpdef add(self, Py_ssize_t shared_id)
    cpdef remove(self, Py_ssize_t shared_id)
    cpdef bint is_current(self, Py_ssize_t shared_id, int64_t name, int64_t generation) except -1
    cpdef int64_t total(self, Py_ssize_t shared_id) except? -1
