cimport cython

from app.server.client_connection cimport ClientConnection


cdef class DeclaredBody:
    cdef ClientConnection _connection
    cdef bytes _have
    cdef Py_ssize_t _left
    cdef readonly bytes rest

    cpdef read(self, size=*)
    @cython.locals(have=Py_ssize_t, room=Py_ssize_t, count=Py_ssize_t, ended=bint)
    cdef bytes _receive(self, Py_ssize_t wanted)
    cpdef bint finished(self) except -1
