"""The leader: the worker that does what is done once a pod, such as health checks and watching the routes file.

The leader holds a lease in the shared table and renews it every second. If it dies or hangs, the lease runs out and the
next worker that asks leads. Two workers may believe for a moment that they lead, when one of them was stopped: the work
must bear being done twice.
"""

import os

from app.native import now_ms
from app.shared_memory.table import Layout, SharedTable

LAYOUT = Layout(cells=("leader_pid", "leader_until_ms"))
LEASE_MS = 3000


class Leader:
    """The lease, as one worker sees it."""

    def __init__(self, table: SharedTable) -> None:
        self._lock = table.lock
        self._pid = table.cell("leader_pid")
        self._until_ms = table.cell("leader_until_ms")

    def leads(self) -> bool:
        """Whether this process leads now. Renews its lease, or takes one that ran out."""
        me = os.getpid()
        with self._lock:
            now = now_ms()  # read under the lock, for which the caller may have waited
            if self._pid[0] != me and now < self._until_ms[0]:
                return False
            self._pid[0] = me
            self._until_ms[0] = now + LEASE_MS
            return True
