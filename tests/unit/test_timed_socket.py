"""What a `TimedSocket` waits for, and the keep-alive of connections on both sides."""

import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from gevent import sleep, spawn
from gevent import socket as gevent_socket

from app.net.timed_socket import TimedSocket
from app.server import listeners
from app.upstream.dialer import Address, dial
from app.upstream.resolver import Resolver

SHORT_S, LONG_S = 0.05, 20.0


class TlsStandIn:
    """A connection as TLS sees it, whose next record can only be sent once something of the other side was read."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.needs_input = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def write(self, data: bytes) -> int:
        if self.needs_input:
            try:
                self._sock.recv(1)
            except BlockingIOError:
                raise ssl.SSLWantReadError from None
            self.needs_input = False
        sent: int = self._sock.send(data)
        return sent


@pytest.fixture
def pair() -> Iterator[tuple[TimedSocket, socket.socket]]:
    """A connection that takes what is sent, and its other side."""
    near, far = gevent_socket.socketpair()
    timed = TimedSocket(near)
    yield timed, far
    timed.close()
    far.close()


def over_tls(timed: TimedSocket) -> TlsStandIn:
    """Let the connection speak TLS."""
    tls = TlsStandIn(timed.sock)
    timed.sock, timed._tls = tls, True
    return tls


def test_wait_ends_with_either(pair: tuple[TimedSocket, socket.socket]) -> None:
    """What could not be sent goes on when the socket takes more, or when a response comes before that."""
    timed, far = pair
    timed.wait_for_progress(LONG_S)
    while timed.send_now(b"x" * (1 << 16)):
        pass
    with pytest.raises(TimeoutError):
        timed.wait_for_progress(SHORT_S)
    with pytest.raises(TimeoutError):
        timed.send(b"x", SHORT_S)
    spawn(far.sendall, b"early")
    timed.wait_for_progress(LONG_S)
    assert timed.recv_now(100) == b"early"


def test_input_that_was_taken_is_not_foreseen_again(pair: tuple[TimedSocket, socket.socket]) -> None:
    """Input came while nobody waited for it, and was taken without a wait: then there is none."""
    timed, far = pair
    spawn(far.sendall, b"first")
    assert timed.recv(100, LONG_S) == b"first"  # the watcher goes on watching
    far.sendall(b"second")
    sleep(SHORT_S)  # the event loop sees it
    assert timed.recv_now(100) == b"second"
    assert not timed.is_readable_within(SHORT_S)
    far.sendall(b"third")
    assert timed.is_readable_within(LONG_S)
    assert timed.recv_now(2) == b"th"
    assert timed.is_readable_within(LONG_S)


def test_tls_that_must_read_first_waits_for_input_only(pair: tuple[TimedSocket, socket.socket]) -> None:
    """While TLS needs input to send, a socket that takes more is no progress: waiting for that would be a busy loop."""
    timed, far = pair
    over_tls(timed)
    assert timed.send_now(b"x") == 0
    with pytest.raises(TimeoutError):
        timed.wait_for_progress(SHORT_S)
    with pytest.raises(TimeoutError):
        timed.send(b"x", SHORT_S)
    spawn(far.sendall, b"..")
    assert timed.send(b"x", LONG_S) == 1
    assert far.recv(10) == b"x"


def test_tls_that_has_read_waits_for_either_again(pair: tuple[TimedSocket, socket.socket]) -> None:
    """What one record needed says nothing about the next one."""
    timed, far = pair
    tls = over_tls(timed)
    assert timed.send_now(b"x") == 0
    tls.needs_input = False
    while timed.send_now(b"x" * (1 << 16)):
        pass
    spawn(far.recv, 1 << 20)
    timed.wait_for_progress(LONG_S)


def keepalive(sock: Any) -> tuple[int, ...]:
    """Whether it is on, seconds before the first probe and between two, and how many are lost at the end."""
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    switched = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return (int(bool(switched)), *(sock.getsockopt(socket.IPPROTO_TCP, option) for option in options))


def test_keep_alive_is_the_same_on_both_sides() -> None:
    """NATs forget a connection after 350 s of silence, on either side. One lost probe must not end it (RFC 1122)."""
    accepted: list[tuple[int, ...]] = []
    listener = gevent_socket.create_server(("127.0.0.1", 0))
    server = listeners.serve(listener, lambda sock, _: accepted.append(keepalive(sock)), 1, None)
    dialed, _ = dial(Address("127.0.0.1", listener.getsockname()[1]), Resolver(), LONG_S)
    dialed.recv(1, LONG_S)  # the handler has returned
    assert accepted == [keepalive(dialed.sock)]
    on, idle_s, pause_s, probes = accepted[0]
    assert on
    assert idle_s < 350
    assert probes > 1
    assert idle_s + pause_s * probes <= 350
    dialed.close()
    server.stop()
