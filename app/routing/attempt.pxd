cimport cython

from app.native cimport monotonic


cdef class Attempt:
    cdef readonly object endpoint
    cdef object _target
    cdef bint _trial
    cdef double _began
    cdef double _contacted_at
    cdef bytes _error_text
    cdef bint _finished
    cdef bint _awaits_first_byte
    cdef object _first_byte_us
    cdef readonly bint is_clients_fault

    @cython.locals(status=int, serves=bint)
    cpdef send(self, call, double deadline)
    cpdef finish(self, outcome, code)
    cdef _back_off(self, status, headers)
    cdef _first_byte(self, double took_s)
    cdef _observe_first_byte(self, at)
    cdef _whole(self, response)
    cdef _outcome_of_response(self, head)
