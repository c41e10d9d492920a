"""Sockets with a timeout for every wait, the watch on a client that may leave, and the grammar of header fields.

Nothing here knows the router. A wait ends in time, whatever the other side does.
"""
