cdef class Count:
    cdef object __weakref__
    cdef object _child
    cdef double[::1] _file
    cdef Py_ssize_t _at

    cpdef inc(self)
    cpdef add(self, double amount)


cdef class Distribution:
    cdef object __weakref__
    cdef object _child
    cdef list _bounds
    cdef double[::1] _file
    cdef list _at

    cpdef observe(self, double amount)
