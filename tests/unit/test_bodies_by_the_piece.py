"""Reading a request body by the piece: all of its bytes, none of the next request's, and no wait that is not needed."""

import socket
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import socket as gevent_socket
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.errors import InvalidChunkSize
from gunicorn.http.unreader import IterUnreader
from hypothesis import given
from hypothesis import strategies as st

from app.net.timed_socket import TimedSocket
from app.server.chunked_body import ChunkedBody
from app.server.client_connection import ClientConnection, RequestBody
from app.server.declared_body import DeclaredBody

NEXT = b"GET / HTTP/1.1\r\n\r\n"


def cut(data: bytes, step: int) -> list[bytes]:
    """The data in pieces of this size."""
    return [data[at : at + step] for at in range(0, len(data), step)]


def parsed(body: Any, unreader: IterUnreader) -> SimpleNamespace:
    """What is left of a request that gunicorn's parser has read."""
    return SimpleNamespace(body=Body(body), unreader=unreader)


def taken(body: Any, size: int) -> list[bytes]:
    """The body, by the piece."""
    return list(iter(lambda: body.read1(size), b""))


def rest_of(unreader: IterUnreader) -> bytes:
    """What was not taken."""
    return b"".join(iter(unreader.read, b""))


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.integers(1, 60),
    st.integers(1, 50),
    st.sampled_from([b"", b";x=y"]),
)
def test_chunked_body_by_the_piece_is_the_same(chunks: list[bytes], step: int, size: int, extension: bytes) -> None:
    """However it is cut and read, the content is that of `read`, and what follows stays for the next request."""
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks) + b"0\r\n\r\n"
    unreader = IterUnreader(cut(framed + NEXT, step))
    body = RequestBody(parsed(ChunkedBody(None, unreader, 1000), unreader), None, False)  # type: ignore[arg-type]
    pieces = taken(body, size)
    assert b"".join(pieces) == b"".join(chunks)
    assert all(len(piece) <= size for piece in pieces)
    assert (body.finished(), rest_of(unreader)) == (True, NEXT)


def test_small_chunks_that_are_there_are_one_piece() -> None:
    """What has come is not passed on byte by byte."""
    unreader = IterUnreader([b"1\r\na\r\n" * 100, b"1\r\nb\r\n0\r\n\r\n"])
    body = ChunkedBody(None, unreader, 1000)
    assert [body.read1(1000), body.read1(1000), body.read1(1000)] == [b"a" * 100, b"b", b""]


def test_malformed_chunk_ends_the_connection() -> None:
    """After it nobody knows where the next request begins."""
    unreader = IterUnreader([b"1\r\na\r\nx\r\n"])
    body = RequestBody(parsed(ChunkedBody(None, unreader, 1000), unreader), None, False)  # type: ignore[arg-type]
    assert body.read1(10) == b"a"
    with pytest.raises(InvalidChunkSize):
        body.read1(10)
    assert not body.finished()


@given(st.binary(max_size=100), st.integers(1, 60), st.integers(1, 50))
def test_declared_body_by_the_piece_is_the_same(content: bytes, step: int, size: int) -> None:
    """The same for a body of declared length, by gunicorn's parser."""
    unreader = IterUnreader(cut(content + NEXT, step))
    body = RequestBody(parsed(LengthReader(unreader, len(content)), unreader), None, False)  # type: ignore[arg-type]
    pieces = taken(body, size)
    assert b"".join(pieces) == content
    assert all(len(piece) <= size for piece in pieces)
    assert (body.finished(), rest_of(unreader)) == (True, NEXT)


def pair() -> tuple[Any, socket.socket]:
    """A connection as the server has it, and the client's end."""
    server, client = gevent_socket.socketpair()
    return server, client


def test_fast_path_body_by_the_piece() -> None:
    """What came with the head is first, then one receive at a time; an early end is b"" before the body is finished."""
    server, client = pair()
    connection = ClientConnection(server, 5.0)
    connection.set_read_deadline(5.0)
    body = DeclaredBody(connection, b"headabc", 4, 10)
    assert (body.read1(2), body.read1(100)) == (b"ab", b"c")
    client.sendall(b"defgh")
    assert (body.read1(100), body.finished()) == (b"defgh", False)
    client.close()
    assert (body.read1(100), body.finished()) == (b"", False)
    connection.close()


def test_either_socket_ends_the_wait() -> None:
    """The wait tells which of two sockets has input, and leaves it there; without input it times out."""
    server, client = pair()
    other, peer = pair()
    waiting = TimedSocket(server)
    with pytest.raises(TimeoutError):
        waiting.is_readable_before(other.fileno(), 0.05)
    gevent.spawn(peer.sendall, b"x")
    assert not waiting.is_readable_before(other.fileno(), 5.0)
    assert other.recv(1) == b"x"
    gevent.spawn(client.sendall, b"y")
    assert waiting.is_readable_before(other.fileno(), 5.0)
    assert waiting.is_readable_before(other.fileno(), 5.0)
    assert waiting.recv(10, 5.0) == b"y"
    with pytest.raises(TimeoutError):
        waiting.is_readable_before(other.fileno(), 0.05)
    client.close()
    assert waiting.is_readable_before(other.fileno(), 5.0)  # its end
    waiting.close()
    for sock in (other, peer):
        sock.close()


def test_time_that_was_not_the_clients_is_given_back() -> None:
    """A deadline is postponed by the time in which nothing was read."""
    server, client = pair()
    connection = ClientConnection(server, 5.0)
    connection.set_read_deadline(-1.0)
    client.sendall(b"x")
    with pytest.raises(TimeoutError):
        connection.is_readable_before(client.fileno(), 1.0)
    connection.postpone_read_deadline(10.0)
    assert connection.is_readable_before(client.fileno(), 1.0)
    connection.close()
    client.close()
