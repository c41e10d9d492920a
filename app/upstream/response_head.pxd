from app.native cimport split_response


cdef class Head:
    cdef readonly int status
    cdef readonly list headers
    cdef readonly object length
    cdef readonly bint chunked
    cdef readonly bint keep


cdef class HeadReader:
    cdef str _method
    cdef object _buffer
    cdef Py_ssize_t _interim_bytes
    cdef readonly bint heard
    cdef readonly bint begun
    cdef readonly bytes rest

    cpdef feed(self, bytes data)


cpdef parse_head(bytes data, str method)
