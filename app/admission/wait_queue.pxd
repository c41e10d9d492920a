from libc.stdint cimport int64_t


cdef class WaitQueue:
    cdef object _half
    cdef object _entries
    cdef int64_t[::1] _cursor
    cdef object _first
    cdef object _number

    cpdef int64_t granted(self) except -1
