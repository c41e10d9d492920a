from app.native cimport plain_usage


cpdef object usage_in(bytes text, Py_ssize_t start=*)
cdef dict _usage_at(bytes text, Py_ssize_t at)
cdef object _read(dict usage)
cdef object _count(dict members, str name)
cdef object _detail(dict usage, str one, str other, str name)
