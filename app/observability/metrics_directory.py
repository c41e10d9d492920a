"""The directory of the metrics files: emptied or made at the start, removed by the last server that uses it.

Every server that uses a directory holds a shared lock (flock(2)) on it, through a descriptor that its workers inherit.
The kernel releases the lock when the last of these processes ends, however it ends. So the lock distinguishes a
directory in use from one that a SIGKILL left behind, which the next start removes.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from app.errors import SettingsError

_PREFIX = "router-metrics-"
_MEMORY = Path("/dev/shm")  # noqa: S108  # only looked into; what is made there is made by mkdtemp


class MetricsDirectory:
    """This server's use of a directory."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def leave(self) -> None:
        """Stop using the directory, and remove it if no other server uses it. May be called again.

        To turn a shared lock into an exclusive one, the kernel releases the first before it tries for the second. So of
        two servers that leave at the same moment, at least one finds no other.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if _lock_alone(descriptor):
            for file in self.path.glob("*.db"):
                file.unlink(missing_ok=True)
            try:
                self.path.rmdir()
            except OSError:
                pass  # it holds other files, or is a mount point
        os.close(descriptor)


def open_directory(configured: str | None, inherited: str | None) -> MetricsDirectory:
    """Open the inherited directory, or the configured one, emptied, or else a new one, in memory if possible.

    Raises SettingsError if the configured directory can't be used.
    """
    if inherited is not None:
        return _use(Path(inherited))
    if configured is not None:
        directory = Path(configured)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for file in directory.glob("*.db"):
                file.unlink()
            used = _use(directory)
            if os.access(directory, os.W_OK | os.X_OK):
                return used
            raise PermissionError(errno.EACCES, "it is not writable")
        except OSError as error:
            reason = f"must be a directory that can be made and written: {error.strerror}"
            raise SettingsError(f"PROMETHEUS_MULTIPROC_DIR={configured!r}: {reason}") from None
    for parent in (_MEMORY, Path(tempfile.gettempdir())):
        _remove_abandoned(parent)
        try:
            return _make_in(parent)
        except OSError as error:  # there is none, it is not writable, or full
            failure = error
    raise SettingsError(f"PROMETHEUS_MULTIPROC_DIR is not set, and {parent} has no room for the metrics: {failure}")


def _make_in(parent: Path) -> MetricsDirectory:
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        used = _use(directory)
        if directory.exists():  # another start may have removed it as abandoned before it was locked
            return used


def _use(directory: Path) -> MetricsDirectory:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return MetricsDirectory(directory, descriptor)


def _remove_abandoned(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone by now, or another user's
        if _lock_alone(descriptor):
            shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def _lock_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
