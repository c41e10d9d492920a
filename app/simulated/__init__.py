"""A model that needs no set-up: it waits as long as a model would take, and responds in every protocol.

The response depends on nothing but the request. It behaves as a model server behind the router would, so the router can
be tried, tested and measured without one.
"""
