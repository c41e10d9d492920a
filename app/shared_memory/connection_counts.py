"""How many connections each worker has open, so that the workers can share new ones evenly.

Every worker writes its own row only, and reads the others' without the lock. What it reads may be some connections old:
one worker then accepts a few more than another, until it looks again.
"""

from app.shared_memory.slots import used_rows
from app.shared_memory.table import Layout, SharedTable

LAYOUT = Layout(columns=("accepting", "connections"))


class ConnectionCounts:
    """The connections of all workers. A worker counts its own."""

    def __init__(self, table: SharedTable) -> None:
        self._accepting = table.column("accepting")
        self._connections = table.column("connections")
        self._rows = used_rows(table)
        self._slot = 0

    def attach(self, slot: int) -> None:
        """Bind to the worker's row. The worker calls this, and accepts from now on."""
        self._slot = slot
        self._connections[slot] = 0
        self._accepting[slot] = 1

    def add(self, change: int) -> None:
        """Count a connection of this worker that was accepted (1) or has ended (-1)."""
        self._connections[self._slot] += change

    def stop_accepting(self) -> None:
        """Leave the comparison: this worker accepts no more, so that others must not give way to it."""
        self._accepting[self._slot] = 0

    def lead(self) -> int:
        """Returns how many more connections this worker has than the one that has the fewest; 0 if that is this one."""
        fewest = own = self._connections[self._slot]
        for row in range(self._rows[0]):
            if self._accepting[row]:
                fewest = min(fewest, self._connections[row])
        return own - fewest

    def release_row(self, slot: int) -> int:
        """Clear the row of a dead worker. Returns 0: connections hold no permits."""
        self._accepting[slot] = self._connections[slot] = 0
        return 0
