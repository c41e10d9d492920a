cdef class ClientRequest:
    cdef readonly object operation
    cdef readonly object params
    cdef readonly str query
    cdef readonly object header
    cdef readonly bytes body
    cdef readonly object form


cdef class ParsedCall:
    cdef readonly object adapter
    cdef readonly str method
    cdef readonly str path
    cdef readonly bytes body
    cdef readonly str model
    cdef readonly object prompt
    cdef readonly str version
    cdef readonly object model_as_written
    cdef readonly bint is_json
    cdef readonly object rest
    cdef public str refers_to
    cdef public object endpoint
    cdef public bint pinned
