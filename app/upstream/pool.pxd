cimport cython

from app.upstream.connection cimport Connection


cdef class Response:
    cdef readonly object head
    cdef readonly bint is_whole
    cdef Connection _connection
    cdef Pool _pool

    cpdef expect_end(self)
    cpdef close(self)


cdef class Pool:
    cdef readonly object address
    cdef object _resolver
    cdef object _idle
    cdef object _hosts
    cdef bint _in_use
    cdef bint _closed

    @cython.locals(connection=Connection)
    cpdef send(self, bytes request, str method, timeouts, double deadline, sender, rest=*, more=*)
    cpdef give_back(self, Connection connection)
    cdef bint _is_outdated(self, Connection connection, double now) except -1
    @cython.locals(oldest=double)
    cdef _close_idle(self)
    @cython.locals(connection=Connection)
    cdef _take(self)
