"""Reading a chunked body (RFC 9112 section 7.1) from pieces cut anywhere."""

import re

from app.errors import UpstreamBroken

_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 1 << 16
_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;" + _TEXT + rb")?")
FIELDS = re.compile(rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:" + _TEXT + rb")*")
"""Header or trailer fields, each after a line end."""


class ChunkReader:
    """`feed` it what comes; it gives the content, and knows when the body has ended. Trailer fields are dropped."""

    __slots__ = ("_in_trailer", "_left", "_rest", "ended")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0  # bytes of the present chunk still to come, and 2 for its line end; 0 between chunks
        self._in_trailer = False
        self.ended = False

    @property
    def rest(self) -> bytes:
        """What was fed and is not part of the body."""
        return self._rest

    def feed(self, data: bytes) -> bytes:
        """The content of these bytes, of all their chunks together; perhaps none. Raises UpstreamBroken."""
        self._rest += data
        pieces = []
        while self._rest and not self.ended:
            if self._left > 2:
                piece = self._rest[: self._left - 2]
                self._rest = self._rest[len(piece) :]
                self._left -= len(piece)
                pieces.append(piece)
            elif not self._read_line():
                break
        return b"".join(pieces)

    def _read_line(self) -> bool:
        """Read the end of a chunk, the head of one, or the trailer; answers whether it was all there."""
        if self._in_trailer:
            return self._read_trailer()
        line, end, rest = self._rest.partition(b"\r\n")
        if not end:
            if len(line) > _MAX_LINE_BYTES or (self._left and line not in (b"", b"\r")):
                raise UpstreamBroken("the head or the end of a chunk is malformed")
            return False
        if self._left:
            if line:
                raise UpstreamBroken("a chunk is longer than it says")
            self._left = 0
        else:
            size = _SIZE_LINE.fullmatch(line)
            if size is None or len(line) > _MAX_LINE_BYTES:
                raise UpstreamBroken("the head of a chunk is malformed")
            length = int(size[1], 16)
            self._in_trailer = length == 0
            self._left = length + 2 if length else 0
        self._rest = rest
        return True

    def _read_trailer(self) -> bool:
        fields, end, rest = (b"\r\n" + self._rest).partition(b"\r\n\r\n")
        if not end:
            if len(fields) > _MAX_TRAILER_BYTES:
                raise UpstreamBroken("the trailer is too long")
            return False
        if not FIELDS.fullmatch(fields):
            raise UpstreamBroken("the trailer is malformed")
        self._rest = rest
        self.ended = True
        return True
