"""What the shared table holds: the columns, cells and arrays of every module that keeps something in it."""

from app import budget, drain, endpoints, leader, limiter, line, publication, slots, usage
from app.backends import version
from app.shared import SharedTable


def shared_table(max_concurrency: int, queue_size: int, inherited: str | None = None) -> SharedTable:
    """Make the table for these limits, or adopt the one of the program before this (see SharedTable)."""
    return SharedTable(
        (*limiter.COLUMNS, *slots.COLUMNS, *drain.COLUMNS),
        (*limiter.CELLS, *slots.CELLS, *publication.CELLS, *leader.CELLS),
        {
            **line.arrays(queue_size),
            **usage.ARRAYS,
            **endpoints.ARRAYS,
            **budget.ARRAYS,
            **version.ARRAYS,
            **publication.ARRAYS,
        },
        identity=f"MAX_CONCURRENCY={max_concurrency} QUEUE_SIZE={queue_size}",
        inherited=inherited,
    )
