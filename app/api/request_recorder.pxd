cimport cython
from libc.stdint cimport int64_t

from app.admission.permit cimport Permit
from app.api.exchange cimport Exchange
from app.native cimport store_id
from app.routing.attempt_record cimport AttemptRecord, PoolMembers
from app.shared_memory.request_ring cimport RequestRing


cdef class RequestRecorder:
    cdef RequestRing _ring
    cdef object _hashes
    cdef object _codes

    @cython.locals(ring=RequestRing, at=Py_ssize_t, words=int64_t[::1], doubles=double[::1], flags=int64_t, permit=Permit)
    cpdef record(self, Exchange exchange, double total_s)
    @cython.locals(words=int64_t[::1])
    cdef int64_t _store_overload(self, Py_ssize_t at, overload) except -1
    @cython.locals(words=int64_t[::1], doubles=double[::1], count=int64_t, number=int64_t, place=Py_ssize_t, attempt=AttemptRecord, pool=PoolMembers, seen=list)
    cdef int64_t _store_attempts(self, Py_ssize_t at, list attempts) except -1
