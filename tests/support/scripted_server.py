"""A server that does on every connection what its script says, down to single bytes and how it hangs up.

A script is a function of a `Peer`. When it returns, the server waits until the client hangs up; leaving the `with`
block fails if a client hasn't, and raises what went wrong in a script. So every test shows that nothing leaks.
"""

import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

TIMEOUT_S = 20.0
"""What takes longer than this will never come."""

_GONE = (ConnectionError, ssl.SSLError)


class Peer:
    """The server's side of one connection."""

    def __init__(self, sock: socket.socket, note: Callable[[bytes], None]) -> None:
        self._sock = sock
        self._note = note
        self._buffer = b""
        self._closed = False

    def read_head(self) -> bytes:
        """The head of a request, read to its end and noted; none of what follows unless it came along."""
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self._note(head)
        return head

    def read_request(self, after_head: Callable[[], object] = lambda: None) -> bytes:
        """A whole request; answers its body. `after_head` is called before the body is read."""
        head = self.read_head().lower()
        after_head()
        _, _, length = head.partition(b"content-length: ")
        left = int(length.partition(b"\r\n")[0] or b"0")
        pieces, have = [self._buffer], len(self._buffer)
        while have < left:
            self._buffer = b""
            self._read()
            pieces.append(self._buffer)
            have += len(self._buffer)
        whole = b"".join(pieces)
        body, self._buffer = whole[:left], whole[left:]
        return body

    def read_some(self) -> bytes:
        """More of what the client sends, b"" at the end."""
        data, self._buffer = self._buffer, b""
        return data or self._sock.recv(1 << 16)

    def _read(self) -> None:
        data = self._sock.recv(1 << 16)
        if not data:
            raise AssertionError("the client hung up before its request was complete")
        self._buffer += data

    def send(self, *pieces: bytes) -> None:
        """Send these pieces, each by itself; a client that hangs up meanwhile is none the less fine."""
        try:
            for piece in pieces:
                self._sock.sendall(piece)
        except _GONE:
            pass

    def send_until_hung_up(self, piece: bytes) -> None:
        """Send this again and again, for as long as anyone takes it."""
        try:
            while True:
                self._sock.sendall(piece)
        except _GONE:
            pass

    def wait_readable(self, seconds: float = TIMEOUT_S) -> bool:
        """Whether something comes within this time. It is not read."""
        return bool(select.select([self._sock], [], [], seconds)[0])

    def discard_until_quiet(self, seconds: float) -> int:
        """Read what comes until nothing has come for this time. Answers how many bytes it was."""
        count, self._buffer = len(self._buffer), b""
        while self.wait_readable(seconds) and (data := self._sock.recv(1 << 16)):
            count += len(data)
        return count

    def shut_down(self) -> None:
        """Send FIN, and leave the other direction open."""
        self._sock.shutdown(socket.SHUT_WR)

    def say_goodbye(self) -> None:
        """End TLS in its own words, then hang up."""
        assert isinstance(self._sock, ssl.SSLSocket)
        try:
            self._sock = self._sock.unwrap()
        except OSError:
            pass  # the client did not say it too
        self.close()

    def close(self) -> None:
        """Hang up: FIN, or RST if the client sent what wasn't read."""
        self._closed = True
        self._sock.close()

    def reset(self) -> None:
        """Hang up with RST."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def wait_hung_up(self) -> None:
        """Return when the client has hung up. What it sends before is thrown away."""
        try:
            while not self._closed and self._sock.recv(1 << 16):
                pass
        except TimeoutError:
            raise AssertionError("the client never hung up") from None
        except _GONE:
            pass


Script = Callable[[Peer], None]


def answer(*pieces: bytes) -> Script:
    """A script: read a request, send these pieces, and leave it at that."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(*pieces)

    return script


def answer_and_close(*pieces: bytes) -> Script:
    """A script: read a request, send these pieces, and hang up."""

    def script(peer: Peer) -> None:
        answer(*pieces)(peer)
        peer.close()

    return script


def answer_and_reset(*pieces: bytes) -> Script:
    """A script: read a request, send these pieces, and hang up with RST."""

    def script(peer: Peer) -> None:
        answer(*pieces)(peer)
        peer.reset()

    return script


def answer_each(*answers: bytes) -> Script:
    """A script: read as many requests as there are answers, each answered in turn."""

    def script(peer: Peer) -> None:
        for each in answers:
            answer(each)(peer)

    return script


class ScriptedServer:
    """`with ScriptedServer(script, …) as server:` serves the first connection by the first script, and so on.

    The last script serves all connections that follow.
    """

    def __init__(
        self, *scripts: Script, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.host = host
        self._scripts = scripts
        self._tls = tls
        self._listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        self.seen: list[tuple[int, bytes]] = []
        """The head of every request, and which connection it came on, counted from 0."""
        self.connections = 0
        self._errors: list[BaseException] = []
        self._peers: list[threading.Thread] = []
        self._marker: object = None
        self._caught_up = threading.Event()
        self._acceptor = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait_done()
        finally:
            self._listener.shutdown(socket.SHUT_RD)  # ends accept()
            self._acceptor.join()
            self._listener.close()

    def wait_done(self) -> None:
        """Return when every connection's script has run and its client has hung up. Raises what went wrong."""
        with socket.socket(self._listener.family) as marker:
            marker.bind((self.host, 0))
            self._marker = marker.getsockname()
            self._caught_up.clear()
            marker.connect((self.host, self.port))
            assert self._caught_up.wait(TIMEOUT_S)  # connections are accepted in turn: all before this one are known
        for thread in self._peers:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def forgive(self) -> None:
        """Forget what went wrong in scripts, for a test that meant it to."""
        self._errors.clear()

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError:
                return
            if address == self._marker:
                sock.close()
                self._caught_up.set()
                continue
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            thread = threading.Thread(target=self._serve, args=(sock, script, self.connections), daemon=True)
            self.connections += 1
            self._peers.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, script: Script, number: int) -> None:
        sock.settimeout(TIMEOUT_S)
        try:
            if self._tls is not None:
                try:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                except OSError:
                    return  # the client did not like the certificate
            peer = Peer(sock, lambda head: self.seen.append((number, head)))
            script(peer)
            peer.wait_hung_up()
        except BaseException as error:
            self._errors.append(error)
        finally:
            sock.close()
