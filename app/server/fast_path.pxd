from app.native cimport join_response, split_request
from app.server.client_connection cimport ClientConnection
from app.server.declared_body cimport DeclaredBody


cdef class Request:
    cdef readonly dict environ
    cdef readonly DeclaredBody body
    cdef readonly bint keep


cdef class FastPath:
    cdef bint _used
    cdef Py_ssize_t _longest
    cdef Py_ssize_t _longest_target
    cdef Py_ssize_t _most_fields
    cdef object _schemes
    cdef bint _only_loopback_is_trusted
    cdef object _keys
    cdef set _own_names
    cdef dict _constant
    cdef readonly bint keeps
    cdef long _second
    cdef list _fixed

    cpdef parse(self, ClientConnection connection, dict base, bytes data)
    cpdef application_fields(self, list fields)
    cpdef list fixed_fields(self)


cdef class ResponseWriter:
    cdef ClientConnection _client
    cdef Request _request
    cdef object _stops
    cdef FastPath _path
    cdef str _status
    cdef readonly bint headers_sent
    cdef object _length
    cdef readonly bint chunked
    cdef readonly list fields
    cdef readonly bint keep

    cpdef send(self, application)
    cpdef write(self, bytes data)
    cpdef end(self)
    cdef _framed(self, bytes data)
    cdef _head(self)
