"""The reader of a client's chunked body (RFC 9112 section 7.1). It takes the place of gunicorn's `ChunkedReader`.

Rules:
- **Linear.** No byte is searched twice, however the client cuts what it sends. (gunicorn's reader counts the line ends
  of the whole trailer again for each piece that arrives.)
- **Bounded.** A chunk's head and the trailer section have at most as many bytes as the fields of a request's head.
  Chunk extensions may not outgrow the content: see `_MAX_EXCESS_BYTES`.
- **Strict.** What is malformed raises the errors of gunicorn's reader. Bytes that follow the body go back to the
  unreader: they are the next request.
"""

import re
from io import BytesIO
from typing import Any

from gunicorn.http.body import CHUNK_EXT_RE
from gunicorn.http.errors import (
    ChunkMissingTerminator,
    InvalidChunkExtension,
    InvalidChunkSize,
    InvalidHeader,
    LimitRequestHeaders,
    NoMoreData,
)

_SIZE = re.compile(rb"([0-9A-Fa-f]+)(?:[ \t]*(;.*))?", re.DOTALL)
_NEXT_CHUNK = re.compile(rb"\r\n[1-9A-Fa-f][0-9A-Fa-f]*+\r\n")
"""The end of a chunk and the whole head of the next one, as most clients write it."""
_MAX_EXCESS_BYTES = 1 << 14
"""What the heads of chunks may have beyond 16 bytes each and twice the content, as Go's reader allows it. Otherwise a
client could send kilobytes of extensions for each byte of content, and MAX_BODY_BYTES would bound nothing."""


class ChunkedBody:
    """Reads content, and knows when the body has ended. Trailer fields are checked and dropped."""

    def __init__(self, request: Any, unreader: Any, limit: int) -> None:
        """`limit`: the most bytes of a chunk's head, and of the trailer section."""
        self._request = request
        self._unreader = unreader
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0
        self._left = 0  # content of the current chunk that has yet to come
        self._in_chunk = False
        self._excess = 0
        self.ended = False

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes of content, b"" only at the end.

        Raises a ParseException for what is malformed, NoMoreData at an early end, or what the connection raises.
        """
        buffer, have = BytesIO(), 0  # not a list of pieces: chunks may be of a byte each
        while have < size and not self.ended:
            if not self._left:
                self._begin_chunk()
                continue
            if self._at == len(self._buffer):
                self._receive(self._left)
            piece = self._take(min(size - have, self._left))
            self._left -= len(piece)
            have += buffer.write(piece)
        return buffer.getvalue()

    def read1(self, size: int) -> bytes:
        """Returns some of the content, up to `size` bytes: what is there, or comes next. b"" only at the end.

        Raises what `read` raises.
        """
        pieces, have = [], 0
        while have < size and not self.ended:
            if not self._left:
                if have and not _NEXT_CHUNK.match(self._buffer, self._at):
                    break  # to read further might be to wait
                self._begin_chunk()
            elif self._at == len(self._buffer):
                if have:
                    break
                self._receive(self._left)
            else:
                pieces.append(self._take(min(size - have, self._left)))
                self._left -= len(pieces[-1])
                have += len(pieces[-1])
        return b"".join(pieces)

    def holds_input(self) -> bool:
        """Whether bytes were received that are not read yet, or the body has ended."""
        return self.ended or self._at < len(self._buffer)

    def _begin_chunk(self) -> None:
        """Read up to the content of the next chunk, or to the end of the body."""
        if self._in_chunk:
            self._read_chunk_end()
        line = self._line()
        found = _SIZE.fullmatch(line)
        if found is None:
            raise InvalidChunkSize(line[:64])
        size, extension = found.groups()
        if extension is not None and not CHUNK_EXT_RE.fullmatch(extension):
            raise InvalidChunkExtension("invalid chunk extension")
        self._left = int(size, 16)
        self._in_chunk = True
        self._excess = max(0, self._excess + len(line) + 2 - 16 - 2 * self._left)
        if self._excess > _MAX_EXCESS_BYTES:
            raise InvalidChunkExtension("more chunk extensions than content")
        if not self._left:
            self._read_trailer()
            self._unreader.unread(self._take(len(self._buffer) - self._at))
            self.ended = True

    def _read_chunk_end(self) -> None:
        while len(self._buffer) - self._at < 2:
            self._receive()
        if (end := self._take(2)) != b"\r\n":
            raise ChunkMissingTerminator(end)

    def _line(self) -> bytes:
        """Returns the next line, without its end."""
        searched = 0
        while (end := self._buffer.find(b"\n", self._at + searched)) < 0:
            searched = len(self._buffer) - self._at
            if searched > self._limit:
                raise InvalidChunkSize(b"line over %d bytes" % self._limit)
            self._receive()
        line = self._take(end + 1 - self._at)
        if len(line) > self._limit:
            raise InvalidChunkSize(b"line over %d bytes" % self._limit)
        if not line.endswith(b"\r\n"):
            raise InvalidChunkSize(b"bare LF as line terminator")
        return line[:-2]

    def _read_trailer(self) -> None:
        """Read and check the trailer section, of which nothing is used (RFC 9110 section 6.5.1)."""
        lines, left = [], self._limit
        try:
            while line := self._line():
                left -= len(line) + 2
                if left < 0:
                    raise LimitRequestHeaders(f"the trailer section has more than {self._limit} bytes")
                lines.append(line)
        except InvalidChunkSize as error:
            raise InvalidHeader(f"trailer section: {error.data!r}") from None
        except NoMoreData:
            raise ChunkMissingTerminator(b"") from None
        if lines:
            self._request.parse_headers(b"\r\n".join(lines), from_trailer=True)

    def _receive(self, content: int | None = None) -> None:
        """Append what the client sends next. `content`: how many bytes of it are sure to be content, if that is known.

        The bytes that were taken go first: this only moves the start of a bytearray. So the buffer holds no more than
        an incomplete line, or what one call received.
        """
        del self._buffer[: self._at]
        self._at = 0
        data = self._unreader.read(None, read_ahead=content)
        if not data:
            raise NoMoreData
        self._buffer += data

    def _take(self, size: int) -> bytes:
        """Returns the next bytes of the buffer, up to `size`."""
        with memoryview(self._buffer) as view:
            taken = bytes(view[self._at : self._at + size])
        self._at += len(taken)
        return taken
