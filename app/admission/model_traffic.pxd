from libc.stdint cimport int64_t

from app.shared_memory.counters cimport InflightCounters


cdef class TrafficCounts:
    cdef readonly InflightCounters inflight
    cdef object _lock
    cdef object _rows
    cdef object _queued_by_slot
    cdef list _totals
    cdef readonly object mean_us
    cdef readonly object excess_milli
    cdef readonly int64_t[::1] queued
    cdef readonly int64_t[::1] rejected
    cdef readonly int64_t[::1] served
    cdef readonly int64_t[::1] served_us


cdef class ModelTraffic:
    cdef TrafficCounts _counts
    cdef Py_ssize_t _shared_id

    cpdef enter(self)
    cpdef _leave(self)
    cpdef begin_wait(self)
    cpdef end_wait(self)
    cpdef count_rejected(self)
    cpdef count_served(self, double seconds)
