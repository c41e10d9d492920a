cimport cython
from libc.stdint cimport int64_t

from app.admission.wait_queue cimport WaitQueue
from app.native cimport RobustMutex


cdef class Limiter:
    cdef readonly Py_ssize_t queue_size
    cdef object _table
    cdef RobustMutex _lock
    cdef int64_t[::1] _limit
    cdef int64_t[::1] _inflight
    cdef int64_t[::1] _queued
    cdef int64_t[::1] _service_us
    cdef int64_t[::1] _rows
    cdef WaitQueue _queue
    cdef object _tickets
    cdef readonly object _slot
    cdef readonly object _watcher

    cpdef request(self)
    @cython.locals(mean=int64_t, served_us=int64_t)
    cpdef observe(self, double served_s)
    cpdef give_back(self)
    cdef int64_t _taken(self) except -1
    cdef int64_t _waiting(self) except? -1
