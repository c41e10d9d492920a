cimport cython

from app.api.exchange cimport Exchange
from app.native cimport monotonic
from app.observability.metric_cells cimport Distribution
from app.protocols.event_stream cimport EventReader


cdef class StreamMeter:
    cdef object _metrics
    cdef Exchange _exchange
    cdef Distribution _between
    cdef double _last_at
    cdef object _first_s
    cdef EventReader _reader

    @cython.locals(count=Py_ssize_t, now=double)
    cpdef bint feed(self, bytes piece) except -1
    cpdef end(self)


cdef class StreamEnd:
    cdef EventReader _reader

    cpdef bint feed(self, bytes piece) except -1
    cpdef end(self)


cdef class TailMeter:
    cdef object _metrics
    cdef Exchange _exchange
    cdef bytes _tail

    cpdef bint feed(self, bytes piece) except -1
    cpdef end(self)
