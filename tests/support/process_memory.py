"""What is in the memory of a running process, as its kernel shows it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

_PIECE_BYTES = 1 << 20


def found_in_memory(pid: int, words: Iterable[bytes], *, shared: bool) -> set[bytes]:
    """Which of these words are in the memory that a process shares with others, or in that of its own."""
    left, found = set(words), set()
    longest = max(map(len, left))
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _mappings(pid, "s" if shared else "p"):
            tail = b""
            for at in range(start, end, _PIECE_BYTES):
                memory.seek(at)
                try:
                    piece = memory.read(min(_PIECE_BYTES, end - at))
                except OSError:  # beyond the end of its file, or the kernel's own
                    break
                tail = tail[-longest:] + piece
                found |= {word for word in left if word in tail}
            left -= found
    return found


def _mappings(pid: int, kind: str) -> Iterator[tuple[int, int]]:
    """The writable ones of this kind."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, permissions = line.split()[:2]
        if permissions[1] == "w" and permissions[3] == kind:
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16)
