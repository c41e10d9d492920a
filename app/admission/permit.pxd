cdef class Permit:
    cdef object _issuer
    cdef double _taken_at

    cpdef release(self, served=*)
