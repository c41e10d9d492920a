"""Connecting: the addresses that are tried, how soon, in how much time, and that no attempt leaks."""

import errno
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import gevent
import pytest

from app.errors import ClientGone, UpstreamUnreachable
from app.net.timed_socket import TimedSocket
from app.upstream import dialer as dialer_module
from app.upstream.dialer import Address, dial
from app.upstream.resolver import Resolver, SocketAddress
from tests.support.scripted_server import Peer, ScriptedServer, answer
from tests.support.swallow import swallowing

pytestmark = pytest.mark.slow

EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
LONG_S = 20.0


class Fixed(Resolver):
    """A resolver that gives these addresses, in this order."""

    def __init__(self, *hosts: str) -> None:
        super().__init__()
        self._hosts = hosts
        self.doubted: list[str] = []

    def resolve(self, host: str, within: float) -> list[SocketAddress]:
        return [
            SocketAddress(socket.AF_INET6, one, (0, 0)) if ":" in one else SocketAddress(socket.AF_INET, one)
            for one in self._hosts
        ]

    def doubt(self, host: str) -> None:
        self.doubted.append(host)


def attempts(port: int) -> int:
    """How many sockets of this host wait for a connection to this port: state SYN-SENT in proc(5)'s net/tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "02" for row in rows)


def hang_up(peer: Peer) -> None:
    """A script: wait for the client to hang up."""


def refusing(server: ScriptedServer) -> list[str]:
    """Addresses at which nobody listens on the server's port."""
    assert server.host == "127.0.0.1"
    return [f"127.0.0.{number}" for number in range(101, 104)]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_addresses_that_swallow_connections_leave_time_for_the_last(count: int) -> None:
    """The last of many addresses is reached well within the time, although none before it answers."""
    hosts = [f"127.0.0.{number}" for number in range(2, 2 + count)]
    with ScriptedServer(hang_up) as server, swallowing(server.port, *hosts):
        before = attempts(server.port)
        began = time.monotonic()
        sock, host = dial(Address("name", server.port), Fixed(*hosts, server.host), 4.0)
        assert host == server.host
        assert time.monotonic() - began < 3.8
        assert attempts(server.port) == before
        sock.close()


def test_all_addresses_together_have_the_time_that_one_has() -> None:
    """Four addresses that swallow connections take as long as one, also inside of a timeout of gevent's."""
    hosts = [f"127.0.0.{number}" for number in range(2, 6)]
    resolver = Fixed(*hosts)
    with socket.create_server(("127.0.0.1", 0)) as holder, swallowing(port := holder.getsockname()[1], *hosts):
        before = attempts(port)
        began = time.monotonic()
        with (
            gevent.Timeout(LONG_S, TimeoutError),
            pytest.raises(UpstreamUnreachable, match=r"^name:\d+: not connected within 1 s$") as caught,
        ):
            dial(Address("name", port), resolver, 1.0)
        assert 1 <= time.monotonic() - began < 3.9  # below four times as long
        assert attempts(port) == before
    assert not caught.value.not_tried
    assert resolver.doubted == ["name"]


def test_next_address_is_tried_at_once_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that refuses costs no delay."""
    monkeypatch.setattr(dialer_module, "DELAY_S", LONG_S)
    with ScriptedServer(hang_up) as server:
        sock, host = dial(Address("name", server.port), Fixed(*refusing(server), server.host), 2 * LONG_S)
        assert host == server.host
        sock.close()


def test_failure_begins_the_next_attempt_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an address that swallows connections, one that refuses costs no second delay."""
    monkeypatch.setattr(dialer_module, "DELAY_S", 1.0)
    with ScriptedServer(hang_up) as server, swallowing(server.port, "127.0.0.2"):
        began = time.monotonic()
        sock, _ = dial(Address("name", server.port), Fixed("127.0.0.2", *refusing(server), server.host), LONG_S)
        assert time.monotonic() - began < 3.9
        sock.close()


def test_first_connection_wins_although_its_attempt_began_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempts go on together: one that begins later and is quicker is used."""
    monkeypatch.setattr(dialer_module, "DELAY_S", 0.01)
    with ScriptedServer(hang_up) as server, swallowing(server.port, "127.0.0.2", "127.0.0.3"):
        sock, host = dial(Address("name", server.port), Fixed("127.0.0.2", server.host, "127.0.0.3"), LONG_S)
        assert host == server.host
        assert sock.sock.getpeername() == (server.host, server.port)
        sock.close()


def test_failure_of_all_addresses_says_why() -> None:
    """Where every address refuses, the reason is the message, and the name is looked up again soon."""
    with ScriptedServer(hang_up) as server:
        resolver = Fixed(*refusing(server))
        with pytest.raises(UpstreamUnreachable, match=r"^name:\d+: .*refused") as caught:
            dial(Address("name", server.port), resolver, LONG_S)
    assert not caught.value.not_tried
    assert resolver.doubted == ["name"]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EADDRNOTAVAIL])
def test_what_this_host_lacks_is_not_the_servers_failure(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Without descriptors or ports left, nothing was tried: that says nothing about the model server."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(dialer_module, "_PlainSocket", fail)
    with pytest.raises(UpstreamUnreachable) as caught:
        dial(Address("name", 1), Fixed("127.0.0.1"), LONG_S)
    assert caught.value.not_tried


@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_failure_of_the_server_counts_beside_an_address_that_this_host_lacks(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    """Where IPv6 is switched off, a dead server behind a name with both families is still a dead server."""
    begin = dialer_module._begin

    def without_ipv6(address: SocketAddress, port: int) -> Any:
        if ":" in address.host:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return begin(address, port)

    monkeypatch.setattr(dialer_module, "_begin", without_ipv6)
    hosts = ["127.0.0.101", "::1"]
    with ScriptedServer(hang_up) as server, pytest.raises(UpstreamUnreachable, match="refused") as caught:
        dial(Address("name", server.port), Fixed(*(hosts[at] for at in order)), LONG_S)
    assert not caught.value.not_tried


def test_few_addresses_are_tried_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses swallow connections, a request takes two descriptors: others have to be served too."""
    begin, most = dialer_module._begin, 0
    hosts = [f"127.0.0.{number}" for number in range(2, 10)]
    with ScriptedServer(hang_up) as server, swallowing(server.port, *hosts):
        before = attempts(server.port)

        def counting(address: SocketAddress, port: int) -> Any:
            nonlocal most
            most = max(most, attempts(server.port) - before)
            return begin(address, port)

        monkeypatch.setattr(dialer_module, "_begin", counting)
        monkeypatch.setattr(dialer_module, "DELAY_S", 0.1)
        sock, _ = dial(Address("name", server.port), Fixed(*hosts, server.host), LONG_S)
        sock.close()
    assert most == 2


def test_no_more_than_so_many_addresses_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with hundreds of addresses takes a bounded number of descriptors."""
    tried = []

    def refuse(address: SocketAddress, port: int) -> None:
        tried.append(address.host)
        raise ConnectionRefusedError

    monkeypatch.setattr(dialer_module, "_begin", refuse)
    with pytest.raises(UpstreamUnreachable):
        dial(Address("name", 1), Fixed(*(f"10.0.0.{number}" for number in range(200))), LONG_S)
    assert len(tried) == dialer_module.MOST_ADDRESSES


def test_client_that_goes_away_leaves_no_attempt_behind() -> None:
    """Whatever is thrown into the wait for a connection, every attempt is closed."""
    hosts = [f"127.0.0.{number}" for number in range(2, 5)]
    with socket.create_server(("127.0.0.1", 0)) as holder, swallowing(port := holder.getsockname()[1], *hosts):
        before = attempts(port)
        dialing = gevent.spawn(dial, Address("name", port), Fixed(*hosts), LONG_S)
        deadline = time.monotonic() + LONG_S
        while attempts(port) < before + 2:
            assert time.monotonic() < deadline
            gevent.sleep(0.01)
        dialing.kill(ClientGone, timeout=LONG_S)
        assert isinstance(dialing.exception, ClientGone)
        assert attempts(port) == before


def test_handshake_that_drips_is_bounded() -> None:
    """A server that sends a byte of TLS now and then does not prolong the time in which TLS must be set up."""
    stop = threading.Event()

    def drip(peer: Peer) -> None:
        record = b"\x16\x03\x03\x40\x00"  # the head of a record of 16 KiB, of which no more than some bytes come
        for at in range(200):
            peer.send(record[at : at + 1] or b"\x02")
            if stop.wait(0.05):
                return

    with ScriptedServer(drip) as server:
        began = time.monotonic()
        with pytest.raises(UpstreamUnreachable, match=r"not connected within 0\.3 s"):
            dial(Address(server.host, server.port, tls=True), Resolver(), 0.3)
        assert time.monotonic() - began < 5
        stop.set()


def test_silent_connections_are_kept_alive() -> None:
    """TCP keep-alive probes come sooner than 350 s, after which load balancers forget a connection."""
    with ScriptedServer(answer(EMPTY)) as server:
        sock, _ = dial(Address(server.host, server.port), Resolver(), LONG_S)
        assert _option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert _option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 120
        dead_after = _option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) * _option(
            sock, socket.IPPROTO_TCP, socket.TCP_KEEPCNT
        )
        assert dead_after <= 120
        assert _option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sock.close()


def _option(sock: TimedSocket, *which: Any) -> int:
    value: int = sock.sock.getsockopt(*which)
    return value
