from app.api.exchange cimport Exchange


cdef class _ResponseBody:
    cdef Exchange _exchange
    cdef object _start
    cdef object _on_end
    cdef bint _complete
    cdef public object pieces

    cpdef start(self, str status, list headers, exc_info=*)
    cpdef close(self)
