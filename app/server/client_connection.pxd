from app.native cimport monotonic
from app.net.timed_socket cimport TimedSocket


cdef class ClientConnection:
    cdef object __weakref__
    cdef public object state
    cdef readonly dict facts
    cdef bint _ends_in_order
    cdef double _since
    cdef double _read_by
    cdef object _arrivals
    cdef double _stall_timeout_s
    cdef public object parser
    cdef public object proxied
    cdef TimedSocket _socket
    cdef readonly object sock

    cpdef enter(self, state)
    cpdef first_bytes(self, double seconds)
    cpdef recv(self, Py_ssize_t size)
    cpdef Py_ssize_t recv_into(self, buffer) except -1
    cdef double _start_reading(self) except -1
    cpdef sendall(self, bytes data)
    cdef _send(self, data)
