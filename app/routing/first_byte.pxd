cimport cython
from libc.stdint cimport int64_t

from app.routing.endpoint_records cimport EndpointRecords


@cython.locals(mean=int64_t, off=int64_t, deviation=int64_t)
cpdef learn(EndpointRecords records, Py_ssize_t shared_id, int64_t took_us)
@cython.locals(mean=int64_t)
cpdef int64_t too_long_us(EndpointRecords records, Py_ssize_t shared_id) except? -1
