"""Text files of the configuration: how they are read, and how a change of one is noticed."""

from pathlib import Path

from app.errors import RouterError


def read_text(file: Path, max_bytes: int, failed: type[RouterError]) -> str:
    """Returns the text of a file. Raises `failed` with a message of one line."""
    try:
        with file.open("rb") as opened:
            content = opened.read(max_bytes + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise failed(f"{file}: can't be read: {reason}") from None
    if len(content) > max_bytes:
        raise failed(f"{file}: must have at most {max_bytes} bytes")
    return text


def state_of(file: Path) -> object:
    """Returns what differs once the file, or a symlink above it, was written or replaced, or may be read by others."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
