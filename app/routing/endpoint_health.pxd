cimport cython
from libc.stdint cimport int64_t

from app.native cimport now_ms
from app.routing.endpoint_records cimport EndpointRecords


@cython.locals(available=Py_ssize_t, counted=Py_ssize_t, shared_id=Py_ssize_t)
cpdef bint panics(EndpointRecords records, list shared_ids, double threshold, int64_t now) except -1


cdef class EndpointHealth:
    cdef EndpointRecords _records

    cpdef bint is_available(self, Py_ssize_t shared_id, int64_t now) except -1
    cpdef bint is_ejected(self, Py_ssize_t shared_id, int64_t now) except -1
    cpdef bint is_unhealthy(self, Py_ssize_t shared_id) except -1
    cpdef bint is_draining(self, Py_ssize_t shared_id) except -1
    cpdef bint panics(self, list shared_ids, double threshold, int64_t now) except -1
    cpdef int64_t in_use_since(self, Py_ssize_t shared_id) except? -1
    cpdef served(self, Py_ssize_t shared_id)
    cdef bint _is_verified(self, Py_ssize_t shared_id) except -1
