from libc.stdint cimport int64_t

from app.native cimport RobustMutex


cdef class EndpointRecords:
    cdef readonly RobustMutex lock
    cdef list _fields
    cdef readonly int64_t[::1] circuit
    cdef readonly int64_t[::1] unavailable_until_ms
    cdef readonly int64_t[::1] unhealthy
    cdef readonly int64_t[::1] slow
    cdef readonly int64_t[::1] verified
    cdef readonly int64_t[::1] last_served_ms
    cdef readonly int64_t[::1] first_byte_us
    cdef readonly int64_t[::1] first_byte_deviation_us
    cdef readonly int64_t[::1] ejections
    cdef readonly int64_t[::1] closed_at_ms
    cdef readonly int64_t[::1] consecutive_failures
    cdef readonly int64_t[::1] window
    cdef readonly int64_t[::1] window_requests
    cdef readonly int64_t[::1] window_failures
    cdef readonly int64_t[::1] in_use_since_ms
    cdef readonly int64_t[::1] draining
