from app.protocols.calls cimport Call
from app.routing.endpoint cimport Endpoint, Target

cpdef tuple encoded(Call call, Target target, Endpoint endpoint)
