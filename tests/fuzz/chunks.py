"""Fuzzes the reader of chunked answers: `python -m tests.fuzz.chunks -max_total_time=60`.

For any bytes, cut anywhere: the same content and the same end, or a refusal, which is UpstreamBroken and nothing else.
"""

import re

from app.errors import UpstreamBroken
from tests.fuzz.engine import fuzz, instrumented

with instrumented("app.upstream"):
    from app.upstream.chunks import ChunkReader

from tests.support.requests_corpus import CORPUS

_MAX_LINE = 4096
_MOST_PIECES = 100  # or long inputs, cut byte by byte, would take all the time
_PIECES = (2, 3, 200)
_IN_LINE_END = re.compile(rb"(?<=\r)(?=\n)")
_TOKENS = (
    *(b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\r\r\n", b"0\r\n\r\n", b"0\r\n", b"1\r\nx\r\n", b"5\r\nhello\r\n"),
    *(b";", b";a=b", b';a="b"', b" ", b"\t", b"\x00", b"\x7f", b"\xe4", b"+", b"-", b"_", b"0x", b"0" * 15, b"f" * 16),
    *(b"X: y\r\n", b"X:\r\n", b" folded\r\n", b"X : y\r\n", b":", b"a", b"F", b"HTTP/1.1 200 OK\r\n"),
)


def chunked(data: bytes) -> None:
    """Read the bytes in one piece and in many; how long these are, the first byte says."""
    first, body = data[:1], data[1:]
    whole = _outcome([body])
    for pieces in (_cut(body, 1), *(_cut(body, length) for length in first), _IN_LINE_END.split(body)):
        found = _outcome(pieces)
        assert found == whole, f"as {pieces}: {found}; in one piece: {whole}"


def _cut(data: bytes, length: int) -> list[bytes]:
    length = max(length, len(data) // _MOST_PIECES, 1)
    return [data[at : at + length] for at in range(0, len(data), length)]


def _outcome(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    """The content, whether it has ended, and what follows it then; None if it is refused."""
    reader = ChunkReader()
    content, rest = b"", b""
    try:
        for piece in pieces:
            if reader.ended:
                rest += piece
            else:
                content += reader.feed(piece)
    except UpstreamBroken:
        return None
    return content, reader.ended, reader.rest + rest if reader.ended else b""


def _seeds() -> list[bytes]:
    bodies = [
        entry.data.partition(b"\r\n\r\n")[2]
        for entry in CORPUS.values()
        if b"\r\nTransfer-Encoding: chunked\r\n" in entry.data and len(entry.data) < 1000
    ]
    bodies += [b"1;" + b"e" * (_MAX_LINE - less) + b"\r\nx\r\n0\r\n\r\n" for less in (2, 1)]
    return [bytes([length]) + body for body in bodies for length in _PIECES]


if __name__ == "__main__":
    fuzz(chunked, _seeds(), _TOKENS)
