from app.admission.model_place cimport place_of
from app.native cimport monotonic, server_timing


cdef class Exchange:
    cdef object __weakref__
    cdef public object route
    cdef public str model
    cdef public object adapter
    cdef public int status
    cdef public bint endless
    cdef readonly bint delivered
    cdef public double queue_s
    cdef public double model_s
    cdef public double earlier_s
    cdef public object rejection
    cdef public object overload
    cdef public object error
    cdef readonly list attempts
    cdef public object fallbacks
    cdef public int full_fallbacks
    cdef public object trace
    cdef public object reply_headers
    cdef public object traffic
    cdef public object caller
    cdef public object permit
    cdef public object watch
    cdef readonly double started
    cdef readonly str method
    cdef readonly str path
    cdef readonly str client_address
    cdef readonly str request_id
    cdef object _connection
    cdef list _held
    cdef object _place

    cpdef hold(self, release)
    cpdef admit(self, limiter, double queue_timeout_s, model_limit=*, traffic=*)
    cdef _wait_in_queue(self, ticket, double timeout_s)
    cpdef change_model(self, str name, limit, traffic)
    cpdef withdraw(self)
    cdef _leave_model(self)
    cdef _watch_client(self)
    cpdef deliver(self)
    cpdef double seconds(self)
    cpdef str timing(self)
    cpdef release(self, bint complete=*)
