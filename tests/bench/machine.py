"""What every bench may need of the machine: room for open files, wrk, and the processor time of processes."""

import os
import resource
import shutil
from pathlib import Path

from tests.support.router import children

CORES = 2
"""Workers of our router, and threads of the others."""
OTHER_FILES = 500
"""What a bench has open beside its connections."""


def raise_file_limit(files: int) -> None:
    """Let this process, and those that it starts, open so many and a few others; ends the bench if that is refused."""
    needed = files + OTHER_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(f"{needed} open files are needed, and the hard limit (ulimit -Hn) is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_wrk() -> None:
    """Ends the bench if wrk isn't there."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: `make bench` installs it")


def cpu_seconds(*pids: int) -> float:
    """Processor time that these processes and their descendants have used, those that have ended included."""
    ticks, ahead = 0, list(pids)
    while ahead:
        pid = ahead.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # its parent has its time by now, or will soon
        ticks += sum(int(field) for field in fields[11:15])
        ahead += children(pid)
    return ticks / os.sysconf("SC_CLK_TCK")
