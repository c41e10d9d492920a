cpdef place_of(limit, traffic)
