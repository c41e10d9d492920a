cimport cython

from app.native cimport monotonic
from app.net.timed_socket cimport TimedSocket


cdef class Connection:
    cdef object _arrivals
    cdef bytes _buffer
    cdef bint _chunked
    cdef bint _is_error
    cdef bint _keep
    cdef object _left
    cdef object _more
    cdef double _race_until
    cdef Py_ssize_t _sent
    cdef double _sent_at
    cdef TimedSocket _socket
    cdef object _timeouts
    cdef bint _tls
    cdef list _unsent
    cdef public double deadline
    cdef public double expires_at
    cdef readonly object first_byte_at
    cdef readonly object host
    cdef public double idle_since
    cdef public bint used_before

    @cython.locals(sent=Py_ssize_t)
    cpdef exchange(self, bytes request, str method, timeouts, double deadline, rest=*, more=*)
    cpdef bint may_be_kept(self) except -1
    cpdef bint is_quiet(self) except -1
    cpdef close(self)
    cdef _send_rest(self)
    cdef _get_more(self, double within_s)
    @cython.locals(now=double, seconds=double, limit=double, left=double)
    cdef _receive(self, str what, bint first=*, bint begun=*)
    cdef _read_head(self, str method)
    cdef _more_of_head(self, reader)
    cdef _more_of_body(self)
