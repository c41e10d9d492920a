"""How many requests are with each endpoint, and with each model, over all workers: counts by name in the shared table.

A name is given a place when routes are published (publication.py). A place has a cell in every worker's row, and only
that worker writes it, so it needs no lock to take back what it added. To read a count and to act upon it belongs under
the lock: between the two nobody else may add. A row whose worker died is cleared with the rest of what the worker held.

Names that are served no longer keep their place while anyone is counted there, and longer if there is room. A place of
the routes that are published is never given to another name: workers that have not yet seen the new routes still add
there, and should the publisher be killed, they are not replaced at all.
"""

from collections.abc import Callable, Iterable

from app.errors import RoutesError
from app.shared_memory.table import SLOTS, Layout, SharedTable, name_hash

MAX_IDS = 512
"""How many names can be counted at once: endpoints and models, of the present routes and the last ones."""
LAYOUT = Layout(arrays={"use": MAX_IDS * SLOTS, "use_names": MAX_IDS, "use_last": MAX_IDS})


class InflightCounters:
    """The counts, in one process. `attach` it to the worker's slot before counting."""

    def __init__(self, table: SharedTable) -> None:
        self._use = table.array("use")
        self._names = table.array("use_names")
        self._last = table.array("use_last")  # the generation of the last routes with that name
        self._rows = table.cell("rows")
        self._row = self._use[:0]

    def attach(self, slot: int) -> None:
        """In the worker: this is its row."""
        self._row = self._use[slot * MAX_IDS : (slot + 1) * MAX_IDS]

    def add(self, place: int) -> None:
        """Count one request more. Needs the lock if it depends on what was read."""
        self._row[place] += 1

    def remove(self, place: int) -> None:
        """Count it no more."""
        self._row[place] -= 1

    def release_row(self, slot: int) -> int:
        """Clear what a dead worker counted. Returns 0: no permit is among it. The lock is held."""
        row = self._use[slot * MAX_IDS : (slot + 1) * MAX_IDS]
        for at in range(MAX_IDS):
            row[at] = 0
        return 0

    def total(self, place: int) -> int:
        """Requests counted at a place, over all workers."""
        return sum(self._use[place : self._rows[0] * MAX_IDS : MAX_IDS])

    def places(self, names: Iterable[str]) -> dict[str, int]:
        """Where these names are counted. They must have been assigned."""
        index = {name: place for place, name in enumerate(self._names) if name}
        return {name: index[name_hash(name)] for name in names}

    def assign(self, names: Iterable[str], published: int, clear: Callable[[int], None]) -> None:
        """Give each of these names a place if it has none, for the routes that follow generation `published`.

        A new place is one never used, or else the one given up longest ago; `clear` makes it forget what it knew.
        Raises RoutesError, with nothing changed, if there are too many names. Needs the lock.
        """
        wanted = {name_hash(name) for name in names}
        missing = sorted(wanted - set(self._names))
        given_up = (
            place
            for place, name in enumerate(self._names)
            if name and name not in wanted and self._last[place] < published and not self.total(place)
        )
        free = [place for place, name in enumerate(self._names) if not name]
        free += sorted(given_up, key=lambda place: self._last[place])
        if len(missing) > len(free):
            raise RoutesError(f"more than {MAX_IDS} endpoints and models, those served until now and in use included")
        for place, name in zip(free, missing, strict=False):
            clear(place)  # first: of a name that stands here nobody would know that it is new
            self._names[place] = name
        for place, name in enumerate(self._names):
            if name in wanted:
                self._last[place] = published + 1
