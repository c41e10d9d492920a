cimport cython
from libc.stdint cimport int64_t

from app.native cimport RobustMutex, now_ms
from app.routing.endpoint cimport Endpoint, SharedRouting, Target
from app.routing.endpoint_health cimport EndpointHealth
from app.routing.outlier_detection cimport OutlierDetector
from app.routing.policies cimport Choice
from app.shared_memory.counters cimport InflightCounters


cdef class EndpointPool:
    cdef readonly str name
    cdef readonly object weight
    cdef list _endpoints
    cdef readonly Py_ssize_t size
    cdef int64_t _generation
    cdef int64_t[::1] _cursor
    cdef int64_t[::1] _shared_ids
    cdef int64_t[::1] _back_offs
    cdef int64_t[::1] _hashes
    cdef int64_t[::1] _found
    cdef int64_t[::1] _loads
    cdef int64_t _slow_start_ms
    cdef int64_t[::1] _weights
    cdef int64_t[::1] _grown
    cdef bint _weighs
    cdef RobustMutex _lock
    cdef InflightCounters _counters
    cdef EndpointHealth _health
    cdef OutlierDetector _outliers
    cdef int64_t[::1] _until_ms
    cdef int64_t[::1] _turn
    cdef double _panic_threshold
    cdef double _load_bound
    cdef int64_t _load_floor
    cdef object _policy
    cdef object _reports
    cdef int64_t _stale_ms
    cdef object _history
    cdef object _seed
    cdef object _match
    cdef Target _target

    cdef _set_policy(self, route, version, SharedRouting shared)
    @cython.locals(now=int64_t, count=Py_ssize_t, at=Py_ssize_t)
    cpdef choose(self, bytes key, tried=*, reach=*)
    @cython.locals(count=Py_ssize_t, at=Py_ssize_t, shared_id=Py_ssize_t, current=int64_t, outdated=bint)
    cdef Py_ssize_t _find(self, tried, int64_t now, bint unhealthy, bint backing_off) except -1
    @cython.locals(at=Py_ssize_t, unit=int64_t)
    cdef list _loads_seen(self)
    cdef Py_ssize_t _widen(self, Py_ssize_t count, tried, reach, int64_t now) except -1
    cdef bint _panics(self, int64_t now) except -1
    @cython.locals(place=Py_ssize_t, choice=Choice)
    cdef Py_ssize_t _preferred(self, Py_ssize_t count, bytes key, int64_t now) except -1
    @cython.locals(place=Py_ssize_t, at=Py_ssize_t, weight=int64_t, since=int64_t)
    cdef object _weights_of(self, Py_ssize_t count, int64_t now)
    cdef _estimate(self, reports, Py_ssize_t count, int64_t now)
    cdef Py_ssize_t _known(self, history, Choice choice) except -1
