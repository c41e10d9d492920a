cimport cython
from libc.stdint cimport int64_t


cdef class Choice:
    cdef public object hashes
    cdef public int64_t[::1] loads
    cdef public int64_t turn
    cdef public bytes key
    cdef public double load_bound
    cdef public int64_t load_floor
    cdef public object weights


@cython.locals(count=Py_ssize_t, at=Py_ssize_t, least=int64_t, equals=int64_t, others=int64_t, loads=int64_t[::1])
cpdef Py_ssize_t least_inflight(Choice choice) except -1
