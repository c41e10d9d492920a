cimport cython


cdef class _Names:
    cdef bint _credentials
    cdef dict _known
    cdef Py_ssize_t _length

    @cython.locals(headers=list)
    cpdef list passed(self, dict environ)
    cdef _learn(self, str key)


cdef _Names _names
cdef _Names _names_without_credentials


@cython.locals(dropped=frozenset, headers=list)
cpdef list to_upstream(dict environ, str request_id, bint credentials, double trace_sample_ratio=*)
@cython.locals(passed=list, header=tuple, name=str, value=str, options=str, via=str)
cpdef list to_client(list headers)
