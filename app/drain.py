"""Whether this server is shutting down as a whole, told by the arbiter to all its workers through the shared table.

A worker that merely makes way for another (HUP, TTOU, max_requests) is no drain: the server goes on. During a binary
upgrade two servers share the table, so the cell holds the process id of the arbiter that drains.
"""

import os

from app.shared import SharedTable

CELLS = ("draining_arbiter",)


class Drain:
    """Begun by an arbiter, seen by its workers."""

    def __init__(self, table: SharedTable) -> None:
        self._arbiter = table.cell("draining_arbiter")

    def begin(self) -> None:
        """Called in the arbiter, before it signals its workers."""
        self._arbiter[0] = os.getpid()

    @property
    def begun(self) -> bool:
        """Asked in a worker: whether its arbiter drains."""
        return self._arbiter[0] == os.getppid()
