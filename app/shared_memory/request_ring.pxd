cimport cython
from libc.stdint cimport int64_t


cdef class RequestRing:
    cdef int64_t[::1] _written
    cdef readonly int64_t[::1] words
    cdef readonly object bytes
    cdef readonly double[::1] doubles
    cdef Py_ssize_t _slot
    cdef int64_t _number

    @cython.locals(slot=Py_ssize_t, number=int64_t, at=Py_ssize_t)
    cpdef Py_ssize_t begin(self) except? -2
    cpdef commit(self, Py_ssize_t at)
