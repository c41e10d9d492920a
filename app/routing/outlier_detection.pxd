cimport cython
from libc.stdint cimport int64_t

from app.native cimport RobustMutex, now_ms
from app.routing.endpoint_health cimport panics
from app.routing.endpoint_records cimport EndpointRecords
from app.routing.first_byte cimport learn, too_long_us


cdef class Ended:
    cdef readonly object outcome
    cdef readonly bint trial
    cdef readonly int64_t contacted_ms
    cdef readonly int64_t first_byte_us


cdef class PoolRules:
    cdef readonly list shared_ids
    cdef readonly object ejection
    cdef readonly double panic_threshold


cdef class OutlierDetector:
    cdef RobustMutex _lock
    cdef EndpointRecords _records

    cpdef bint begin(self, Py_ssize_t shared_id, int64_t now) except -1
    @cython.locals(records=EndpointRecords, now=int64_t, circuit=int64_t, trial=bint)
    cpdef bint end(self, Py_ssize_t shared_id, Ended ended, PoolRules pool) except -1
    cdef bint _is_silent(self, Py_ssize_t shared_id, int64_t contacted_ms, int64_t now) except -1
    @cython.locals(records=EndpointRecords, window=int64_t)
    cdef _count(self, Py_ssize_t shared_id, int64_t now, rules, bint failed)
