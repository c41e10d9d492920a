cimport cython

from app.native cimport monotonic
from app.protocols.calls cimport Call, Reply
from app.routing.attempt_record cimport AttemptRecord
from app.routing.endpoint cimport Endpoint, SharedRouting, Target
from app.routing.outlier_detection cimport Ended
from app.routing.upstream_request cimport encoded
from app.upstream.headers cimport to_client
from app.upstream.pool cimport Response
from app.upstream.response_head cimport Head


cdef class Attempt(AttemptRecord):
    cdef readonly Endpoint endpoint
    cdef Target _target
    cdef bint _trial
    cdef double _began
    cdef double _contacted_at
    cdef str _error
    cdef bytes _error_text
    cdef bint _finished
    cdef bint _awaits_first_byte
    cdef object _first_byte_us
    cdef readonly bint is_clients_fault
    cdef public object trace

    @cython.locals(status=int, serves=bint, head=Head, headers=list, response=Response)
    cpdef send(self, Call call, double deadline)
    @cython.locals(shared=SharedRouting, shared_id=Py_ssize_t, ejected=bint)
    cpdef finish(self, outcome, code)
    cdef bint _acts_on(self, int status)
    cdef _back_off(self, status, headers)
    cdef _read_load(self, list headers)
    cdef _first_byte(self, double took_s)
    cdef _observe_first_byte(self, at)
    cdef _whole(self, Response response)
    cdef _outcome_of_response(self, Head head)
