"""Reading a chunked body (RFC 9112 section 7.1) from pieces that may end anywhere."""

import re

from app.errors import UpstreamBroken
from app.net.http_fields import FIELD_VALUE, FIELDS

_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 1 << 16
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;" + FIELD_VALUE.encode() + rb")?")
_SIZE = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n")
_TRAILER = re.compile(FIELDS.encode())


class ChunkReader:
    """Turns what it is fed into the content, and knows when the body has ended. Trailer fields are dropped."""

    __slots__ = ("_in_trailer", "_left", "_rest", "ended")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0  # bytes of the present chunk still to come, and 2 for its line end; 0 between chunks
        self._in_trailer = False
        self.ended = False

    @property
    def rest(self) -> bytes:
        """What was fed and does not belong to the body."""
        return self._rest

    def feed(self, data: bytes) -> bytes:
        """Returns the content of these bytes, of all their chunks together; perhaps none. Raises UpstreamBroken."""
        data = self._rest + data
        at = 0
        pieces = []
        while at < len(data) and not self.ended:
            if not (self._left or self._in_trailer) and (one := _SIZE.match(data, at)):
                begin, end = one.end(), one.end() + int(one[1], 16)
                if data[end : end + 2] == b"\r\n":  # a chunk, and all of it is here
                    pieces.append(data[begin:end])
                    at = end + 2
                    continue
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                self._left -= len(piece)
                pieces.append(piece)
                after = at + len(piece)
            else:
                after = self._read_trailer(data, at) if self._in_trailer else self._read_line(data, at)
            if after == at:
                break
            at = after
        self._rest = data[at:]
        return b"".join(pieces)

    def _read_line(self, data: bytes, at: int) -> int:
        """Reads the end of a chunk, or the head of one; returns where it ends, or `at` if it is not all there."""
        end = data.find(b"\r\n", at)
        if end < 0:
            line = data[at:]
            if len(line) - 1 > _MAX_LINE_BYTES or (self._left and line != b"\r"):  # 1: perhaps of its end
                raise UpstreamBroken("the head or the end of a chunk is malformed")
            return at
        if self._left:
            if end > at:
                raise UpstreamBroken("a chunk is longer than it says")
            self._left = 0
        else:
            size = _SIZE_LINE.fullmatch(data, at, end)
            if size is None or end - at > _MAX_LINE_BYTES:
                raise UpstreamBroken("the head of a chunk is malformed")
            length = int(size[1], 16)
            self._in_trailer = length == 0
            self._left = length + 2 if length else 0
        return end + 2

    def _read_trailer(self, data: bytes, at: int) -> int:
        """The same for the trailer."""
        fields, end, _ = (b"\r\n" + data[at:]).partition(b"\r\n\r\n")
        if len(fields) - (0 if end else 3) > _MAX_TRAILER_BYTES:  # 3: perhaps of its end
            raise UpstreamBroken("the trailer is too long")
        if not end:
            return at
        if not _TRAILER.fullmatch(fields):
            raise UpstreamBroken("the trailer is malformed")
        self.ended = True
        return at + len(fields) + 2
