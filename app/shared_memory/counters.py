"""In-flight counters: how many requests are with each endpoint and each model, over all workers.

Publishing the routes (routing/route_store.py) gives every endpoint URL and every model an id. An id has a cell in every
worker's row, and only that worker writes it: so taking back what it added needs no lock. Reading a count and acting
upon it must happen under the lock: no other worker may add between the two. The row of a dead worker is cleared with
everything else that the worker held.

A name that is served no longer keeps its id as long as requests are counted under it, and longer if there is room. An
id of the routes that are published is never given to another name: workers that have not seen the new routes yet still
count under it, and if the publisher is killed, the routes stay as they are.

A request may hold older routes than those, for as long as it waits or is retried. Invariant: **nothing is counted under
an id that was given to another name.** Names are given under the lock, only to ids with a count of 0; and whoever may
hold older routes calls `is_current` and `add` under the same lock. So either the count comes first, and the id stays
with its name, or the new name does, and the request finds that its endpoint has gone. Addresses may thus come and go
for ever: an id is free again from the second publication without its name, once no request is in progress on it.
"""

from collections.abc import Callable, Iterable

from app.errors import RoutesError
from app.shared_memory.slots import used_rows
from app.shared_memory.table import SLOTS, Layout, SharedTable, name_hash

MAX_IDS = 512
"""How many names can be counted at once: endpoints and models, of the current routes and the ones before."""


def layout(kind: str = "") -> Layout:
    """What counters keep in the table. `kind` begins the names of those that count something else."""
    return Layout(
        arrays={
            f"{kind}inflight_by_id": MAX_IDS * SLOTS,
            f"{kind}id_names": MAX_IDS,
            f"{kind}id_generations": MAX_IDS,
        }
    )


LAYOUT = layout()


class InflightCounters:
    """The counters, in one process. `attach` them to the worker's slot before counting."""

    def __init__(self, table: SharedTable, kind: str = "") -> None:
        self._counts = table.array(f"{kind}inflight_by_id")
        self._names = table.array(f"{kind}id_names")
        self._generations = table.array(f"{kind}id_generations")  # of the last routes that had the name
        self._rows = used_rows(table)
        self._row = self._counts[:0]

    def attach(self, slot: int) -> None:
        """Bind to the worker's row. The worker calls this."""
        self._row = self._counts[slot * MAX_IDS : (slot + 1) * MAX_IDS]

    def add(self, shared_id: int) -> None:
        """Count one more request. The lock is held if that depends on a count that was read."""
        self._row[shared_id] += 1

    def remove(self, shared_id: int) -> None:
        """Count one request less."""
        self._row[shared_id] -= 1

    def total(self, shared_id: int) -> int:
        """Returns the requests counted under an id, over all workers."""
        counts, at, total = self._counts, shared_id, 0
        for _ in range(self._rows[0]):
            total += counts[at]
            at += MAX_IDS
        return total

    def is_current(self, shared_id: int, name: int, generation: int) -> bool:
        """Whether the id still belongs to the name of this hash, and the name to this generation of the routes or a
        later one. The lock is held."""
        return bool(self._names[shared_id] == name and self._generations[shared_id] >= generation)

    def release_row(self, slot: int) -> int:
        """Clear what a dead worker counted. Returns 0: there are no permits among it. The lock is held."""
        row = self._counts[slot * MAX_IDS : (slot + 1) * MAX_IDS]
        for shared_id in range(MAX_IDS):
            row[shared_id] = 0
        return 0

    def ids(self, names: Iterable[str]) -> dict[str, int]:
        """Returns the ids of these names. Raises KeyError for a name that has none."""
        index = {name: shared_id for shared_id, name in enumerate(self._names) if name}
        return {name: index[name_hash(name)] for name in names}

    def assign(
        self,
        names: Iterable[str],
        published: int,
        reset: Callable[[int], None],
        appear: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Give each of these names an id if it has none, for the routes that follow generation `published`.

        A new id is one that was never used, or else the one given up longest ago. New names get theirs in order, so the
        ids of the first routes, which operators see, are in the order of the file. `reset` makes the shared state
        forget what it kept under an id. `appear` is called for every name that generation `published` did not have,
        except of the first routes, where no name is newer than another. Raises RoutesError, with nothing changed, if
        there are too many names. The lock is held.
        """
        wanted = dict.fromkeys(map(name_hash, names))
        known = set(self._names)
        missing = [name for name in wanted if name not in known]
        given_up = (
            shared_id
            for shared_id, name in enumerate(self._names)
            if name and name not in wanted and self._generations[shared_id] < published and not self.total(shared_id)
        )
        free = [shared_id for shared_id, name in enumerate(self._names) if not name]
        free += sorted(given_up, key=lambda shared_id: self._generations[shared_id])
        if len(missing) > len(free):
            raise RoutesError(f"more than {MAX_IDS} endpoints and models, those served until now and in use included")
        for shared_id, name in zip(free, missing, strict=False):
            reset(shared_id)  # first: once the name is stored, nothing shows any more that it is new
            self._names[shared_id] = name
        for shared_id, name in enumerate(self._names):
            if name in wanted:
                if self._generations[shared_id] < published:
                    appear(shared_id)
                self._generations[shared_id] = published + 1
