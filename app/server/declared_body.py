"""The body of an ordinary request, whose length its head declares."""

from io import BytesIO

from app.server.client_connection import ClientConnection

_READ_BYTES = 1 << 18
_GROWTH = 4
"""How many times what has come of a body is set aside for it."""


class DeclaredBody:
    """`wsgi.input`: what came with the head, then what the connection receives, up to the declared length."""

    __slots__ = ("_connection", "_have", "_left", "rest")

    def __init__(self, connection: ClientConnection, data: bytes, at: int, length: int) -> None:
        """The body begins `at` this index of `data`."""
        self._connection = connection
        self._have = data[at : at + length]
        self._left = length
        self.rest = data[at + length :]
        """The bytes after the body: the beginning of the next request."""

    def read(self, size: int | None = None) -> bytes:
        """Returns up to `size` bytes, fewer only at the end. Raises OSError, of which TimeoutError is a subclass."""
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        if len(self._have) < wanted:
            self._have = self._receive(wanted)
        taken = self._have[:wanted]  # no copy where that is all of it
        self._have = self._have[wanted:]
        self._left -= len(taken)
        return taken

    def _receive(self, wanted: int) -> bytes:
        """Returns what has come already, and what follows it up to the size `wanted`.

        A body may be megabytes. The kernel writes it to where it stays: getbuffer() and getvalue() make no copy.
        The buffer grows with what has come, since a client may declare any length and send nothing.
        """
        buffer = BytesIO()
        have = buffer.write(self._have)
        ended = False
        while have < wanted and not ended:
            room = min(wanted, max(_GROWTH * have, _READ_BYTES))
            buffer.seek(room - 1)
            buffer.write(b"\0")
            with buffer.getbuffer() as view:
                while have < room and not ended:
                    count = self._connection.recv_into(view[have : have + _READ_BYTES])
                    have += count
                    ended = not count
        buffer.truncate(have)
        return buffer.getvalue()

    def finished(self) -> bool:
        """Whether the body was read to its end, so that the next request can follow."""
        return self._left == 0

    def unread(self) -> int:
        """Returns how much of the body has yet to be received."""
        return self._left - len(self._have)
