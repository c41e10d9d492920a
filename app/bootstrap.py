"""What the shared table holds: the columns, cells and arrays of every module that keeps something in it."""

from app.admission import limiter
from app.admission import wait_queue as line
from app.routing import endpoint_pool as version
from app.routing import outlier_detection as endpoints
from app.routing import retry_budget as budget
from app.routing import route_store as publication
from app.shared_memory import counters as usage
from app.shared_memory import drain, leader, slots
from app.shared_memory.table import SharedTable


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
