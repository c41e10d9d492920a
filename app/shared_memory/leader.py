"""One worker does what is to be done once a pod: asking endpoints whether they are well, watching the routes file.

Whoever leads holds a lease in the shared table and renews it every second. If it dies or hangs, the lease runs out and
the next to ask leads. For a moment two may believe they lead, when one was frozen; what they do bears being done twice.
"""

import os

from app.shared_memory.table import SharedTable, now_ms

CELLS = ("leader_pid", "leader_until_ms")
LEASE_MS = 3000


class Leader:
    """The lease, seen by one worker."""

    def __init__(self, table: SharedTable) -> None:
        self._lock = table.lock
        self._pid = table.cell("leader_pid")
        self._until = table.cell("leader_until_ms")

    def leads(self) -> bool:
        """Whether this process leads now; renews the lease, or takes one that ran out."""
        me = os.getpid()
        with self._lock:
            now = now_ms()  # not before: one may have to wait for the lock
            if self._pid[0] != me and now < self._until[0]:
                return False
            self._pid[0] = me
            self._until[0] = now + LEASE_MS
            return True
