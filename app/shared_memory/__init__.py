"""State that all workers share and that survives the SIGKILL of any of them.

Each part declares its own layout in the table, and how to release the row of a dead worker. Every write commits with
one store, under a lock that dies with its holder. This package knows no model and no HTTP.
"""
