"""The reader of a chunked body (RFC 9112 section 7.1), from pieces that are cut anywhere."""

import re

from app.errors import UpstreamBroken
from app.http_fields import FIELD_VALUE, FIELDS

_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 1 << 16
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;" + FIELD_VALUE.encode() + rb")?")
_SIZE = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n")
_TRAILER = re.compile(FIELDS.encode())


class ChunkReader:
    """Returns the content of what it is fed, and knows when the body has ended. Trailer fields are dropped."""

    __slots__ = ("_left", "_rest", "_trailer", "ended")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0  # bytes of the current chunk still to come, plus 2 for its line end; 0 between chunks
        self._trailer: bytearray | None = None  # after the last chunk
        self.ended = False

    @property
    def rest(self) -> bytes:
        """The bytes that were fed and follow the body."""
        return self._rest

    def feed(self, data: bytes) -> bytes:
        """Returns the content of these bytes, possibly none. Raises UpstreamBroken."""
        if self.ended:
            self._rest += data
            return b""
        if self._trailer is not None:
            self._read_trailer(self._trailer, data)
            return b""
        if self._rest:
            data = self._rest + data
        at = 0
        pieces = []
        while at < len(data) and self._trailer is None:
            if not self._left and (one := _SIZE.match(data, at)):
                begin, end = one.end(), one.end() + int(one[1], 16)
                if data[end : end + 2] == b"\r\n":  # a complete chunk
                    pieces.append(data[begin:end])
                    at = end + 2
                    continue
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                self._left -= len(piece)
                pieces.append(piece)
                after = at + len(piece)
            else:
                after = self._read_line(data, at)
            if after == at:
                break
            at = after
        self._rest = data[at:]
        if self._trailer is not None:
            rest, self._rest = self._rest, b""
            self._read_trailer(self._trailer, rest)
        return b"".join(pieces)

    def _read_line(self, data: bytes, at: int) -> int:
        """Read the end of a chunk, or the head of one. Returns where it ends, or `at` if it is not complete."""
        end = data.find(b"\r\n", at)
        if end < 0:
            line = data[at:]
            if len(line) - 1 > _MAX_LINE_BYTES or (self._left and line != b"\r"):  # 1: possibly of its line end
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
            if length:
                self._left = length + 2
            else:
                self._trailer = bytearray(b"\r\n")  # as if the last chunk's line end were part of it
        return end + 2

    def _read_trailer(self, trailer: bytearray, data: bytes) -> None:
        """Read more of the trailer. None of it is copied or searched again for each piece."""
        search = max(0, len(trailer) - 3)
        trailer += data
        end = trailer.find(b"\r\n\r\n", search)
        if (end if end >= 0 else len(trailer) - 3) > _MAX_TRAILER_BYTES:  # 3: possibly of its end
            raise UpstreamBroken("the trailer is too long")
        if end < 0:
            return
        if not _TRAILER.fullmatch(trailer, 0, end):
            raise UpstreamBroken("the trailer is malformed")
        self._rest = bytes(trailer[end + 4 :])
        self.ended = True
