"""How far a worker is ahead of the others in connections."""

from app.bootstrap import shared_table
from app.shared_memory.connection_counts import ConnectionCounts
from app.shared_memory.slots import Slots
from app.shared_memory.table import SharedTable


def workers(table: SharedTable, slots: Slots, *connections: int) -> list[ConnectionCounts]:
    """A worker for each of these numbers of connections."""
    made = []
    for count in connections:
        counts = ConnectionCounts(table)
        counts.attach(slots.claim().slot)
        counts.add(count)
        made.append(counts)
    return made


def test_lead_is_over_the_worker_with_the_fewest_connections() -> None:
    """Rows without a worker don't count."""
    table = shared_table(1, 0)
    slots = Slots(table, ())
    (alone,) = workers(table, slots, 7)
    assert alone.lead() == 0
    others = workers(table, slots, 3, 12)
    assert [counts.lead() for counts in (alone, *others)] == [4, 0, 9]
    others[0].add(2)
    assert [counts.lead() for counts in (alone, *others)] == [2, 0, 7]


def test_worker_that_stops_accepting_is_not_waited_for() -> None:
    """One that drains has fewer and fewer connections, and takes none of the new ones."""
    table = shared_table(1, 0)
    draining, other = workers(table, Slots(table, ()), 0, 50)
    assert other.lead() == 50
    draining.stop_accepting()
    assert other.lead() == 0


def test_dead_worker_is_not_waited_for() -> None:
    """Its row is cleared with the rest of what it held, and the next worker in it begins with none."""
    table = shared_table(1, 0)
    slots = Slots(table, (ConnectionCounts(table),))
    (survivor,) = workers(table, slots, 5)
    claim = slots.claim()
    ConnectionCounts(table).attach(claim.slot)
    assert survivor.lead() == 5
    slots.reclaim(claim)
    assert survivor.lead() == 0
    workers(table, slots, 2)
    assert survivor.lead() == 3
