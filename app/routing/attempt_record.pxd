from libc.stdint cimport int64_t


cdef class PoolMembers:
    cdef readonly Py_ssize_t size
    cdef readonly int64_t[::1] hashes
    cdef readonly Py_ssize_t policy


cdef class AttemptRecord:
    cdef readonly PoolMembers pool
    cdef readonly list seen
    cdef public str code
    cdef readonly str endpoint_url
    cdef readonly int64_t endpoint_hash
    cdef public double took_s
