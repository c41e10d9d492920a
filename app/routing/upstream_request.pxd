cimport cython

from app.protocols.calls cimport Call
from app.routing.endpoint cimport Endpoint, Target


@cython.locals(size=Py_ssize_t)
cpdef tuple encoded(Call call, Target target, Endpoint endpoint)
