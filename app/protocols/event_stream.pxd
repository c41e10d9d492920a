cimport cython


cdef class EventReader:
    cdef readonly Py_ssize_t events
    cdef readonly bint ended
    cdef bytearray _kept
    cdef bytes _marker
    cdef bytes _first_usage
    cdef bytes _last_usage
    cdef Py_ssize_t _seen_at_usage

    @cython.locals(before=Py_ssize_t, end=Py_ssize_t)
    cpdef Py_ssize_t feed(self, bytes piece) except -1
    cdef _split(self, bytes piece)
    @cython.locals(at=Py_ssize_t)
    cdef _read(self, bytes event)
    cdef bint _carries_output(self, bytes event) except -1
