"""Sockets with a timeout for every wait, TCP keep-alive, the watch on a client that may leave, and TLS contexts.

Nothing here knows the router. A wait ends in time, whatever the other side does.
"""
