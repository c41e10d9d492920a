cdef class Permit:
    cdef object _issuer
    cdef double _taken_at
    cdef readonly Py_ssize_t limit
    cdef readonly Py_ssize_t in_flight

    cpdef release(self, served=*)
