from libc.stdint cimport int64_t

from app.routing.attempt_record cimport PoolMembers
from app.routing.endpoint_health cimport EndpointHealth
from app.routing.outlier_detection cimport OutlierDetector, PoolRules
from app.shared_memory.counters cimport InflightCounters
from app.upstream.pool cimport Pool


cdef class Endpoint:
    cdef readonly str url
    cdef readonly int64_t url_hash
    cdef readonly Py_ssize_t shared_id
    cdef readonly Py_ssize_t back_off
    cdef readonly Pool connections
    cdef readonly str head
    cdef readonly str base_path


cdef class SharedRouting:
    cdef readonly object table
    cdef readonly InflightCounters counters
    cdef readonly OutlierDetector outliers
    cdef readonly EndpointHealth health
    cdef readonly object back_offs
    cdef readonly object budgets
    cdef readonly object limits
    cdef readonly object traffic
    cdef readonly object metrics
    cdef readonly object loads
    cdef readonly object prefixes
    cdef readonly object last_errors


cdef class Target:
    cdef readonly object route
    cdef readonly str upstream_model
    cdef readonly object upstream_version
    cdef readonly PoolRules rules
    cdef readonly object budget
    cdef readonly SharedRouting shared
    cdef readonly PoolMembers pool
    cdef readonly bint reads_load
