from app.native cimport monotonic


cdef class TimedSocket:
    cdef readonly object sock
    cdef bint _tls
    cdef object _reads
    cdef dict _others
    cdef bint _needs_input
    cdef bint _arrived
    cdef object _waiter
    cdef bint _waits_for_input
    cdef double _deadline
    cdef object _timer
    cdef double _due

    cpdef recv(self, Py_ssize_t size, double timeout_s)
    cpdef Py_ssize_t recv_into(self, buffer, double timeout_s) except -1
    cdef _begin_recv(self, double timeout_s)
    cdef _wait_on(self, error, double timeout_s)
    cpdef Py_ssize_t send(self, data, double timeout_s) except -1
    cpdef Py_ssize_t send_now(self, data) except -1
    cpdef recv_now(self, Py_ssize_t size)
    cdef _wait_to_send(self, int events, double timeout_s)
    cdef _wait_for_input(self, double timeout_s)
    cdef _wait_for(self, int events, double timeout_s)
    cdef _wait(self, double timeout_s)
    cdef _start_timer(self, double seconds)
    cdef _stop_timer(self)
