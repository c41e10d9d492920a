"""The log of what has no effect: once for all processes, and again when it is something else.

The arbiter and the leader read the same files. Whoever reads them compares what it found with what was logged last,
by a hash in the shared table, and takes its place under the lock. So one of them logs it.
"""

from collections.abc import Sequence

import structlog

from app.config.unused import Unused
from app.shared_memory.table import Layout, SharedTable, name_hash

LAYOUT = Layout(cells=("unused_logged",))

_log = structlog.get_logger("router.settings")


def log_unused(table: SharedTable, found: Sequence[Unused], *, always: bool = False) -> None:
    """Log what was found, each in a line. If that is what was logged last, only `always`."""
    # Lines of files are left out: a comment more makes nothing new.
    hashed = name_hash("\n".join(f"{one.name}: {one.reason}" for one in found)) if found else 0
    logged = table.cell("unused_logged")
    with table.lock:
        differs, logged[0] = logged[0] != hashed, hashed
    if differs or always:
        for one in found:
            if one.file is None:
                _log.warning("a setting has no effect", setting=one.name, reason=one.reason)
            else:
                place = {"file": one.file, "line": one.line}
                _log.warning("a member has no effect", member=one.name, reason=one.reason, **place)
