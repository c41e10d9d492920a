cdef class Call:
    cdef readonly str method
    cdef readonly str path
    cdef readonly list headers
    cdef readonly bytes body
    cdef readonly bytes key
    cdef readonly str version
    cdef readonly str model
    cdef readonly object model_as_written
    cdef readonly object adapter
    cdef readonly object rest
    cdef readonly object endpoint
    cdef readonly bint pinned
    cdef readonly list attempts


cdef class Reply:
    cdef readonly int status
    cdef readonly list headers
    cdef readonly object length
    cdef readonly object body
    cdef readonly object close
    cdef readonly object expect_end
    cdef readonly bint is_clients_fault
    cdef readonly str endpoint
