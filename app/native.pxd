from libc.stdint cimport int64_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass


cdef class RobustMutex:
    cdef pthread_mutex_t* _mutex
    cdef const unsigned char[::1] _block
    cpdef acquire(self)
    cpdef release(self)


cpdef stop_clock(int64_t at_ns)
cpdef double monotonic() noexcept
cpdef int64_t now_ms() noexcept
cpdef tuple split_request(bytes data, Py_ssize_t longest)
cpdef tuple split_response(bytes data)
cpdef bytes join_response(str status, list fixed, list fields)
cpdef tuple plain_usage(bytes text, Py_ssize_t at)
cpdef str server_timing(double queue_s, double model_s, double total_s)
cpdef int64_t store_id(int64_t[::1] words, Py_ssize_t at, str text) except -1
cpdef str new_id()
