"""The lingering close: what is discarded, for how long, and of how many connections at once."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from app.server import lingering
from app.server.client_connection import LINGER_GRACE_S, ClientConnection, State
from app.server.lingering import Lingering


class Client:
    """The connection of a client that sends pieces, each after so many seconds of a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, bytes]]) -> None:
        self.now = 0.0
        self.state = State.SERVING
        self.pieces = pieces
        self.discarded = 0
        self.shut: list[int] = []
        self.during: Callable[[], object] = lambda: None
        self.sock: Any = self
        monkeypatch.setattr(lingering, "time", self)

    def monotonic(self) -> float:
        return self.now

    def shutdown(self, how: int) -> None:
        self.shut.append(how)

    def enter(self, state: State) -> None:
        self.state = state

    def first_bytes(self, seconds: float) -> bytes:
        self.during()
        after, data = self.pieces[0] if self.pieces else (1e9, b"")
        if after > seconds:
            self.now += seconds
            raise TimeoutError
        del self.pieces[0]
        self.now += after
        self.discarded += len(data)
        return data

    @property
    def connection(self) -> ClientConnection:
        """Itself, as the lingering close takes it."""
        given: Any = self
        return given  # type: ignore[no-any-return]


def discard(client: Client, unread: int | None, room: Lingering | None = None) -> None:
    """Linger until it ends, however it does."""
    try:
        (room or Lingering(8)).discard(client.connection, unread)
    except TimeoutError:
        pass
    assert (client.shut, client.state) == ([socket.SHUT_WR], State.LINGERING)


def test_what_was_declared_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a declared body, however large, while it comes; and then the client has a second to close."""
    client = Client(monkeypatch, [(0.1, b"x" * 1_000_000)] * 20)
    discard(client, 20_000_000)
    assert client.discarded == 20_000_000
    assert client.now == pytest.approx(20 * 0.1 + LINGER_GRACE_S)


def test_pause_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that pauses for 5 seconds is given up, as nginx does (lingering_timeout)."""
    client = Client(monkeypatch, [(4.9, b"x"), (5.1, b"x")])
    discard(client, 1000)
    assert client.discarded == 1
    assert client.now == pytest.approx(9.9)


@pytest.mark.parametrize("unread", [10**15, None])
def test_time_ends_it(unread: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes on sending is cut off after 30 seconds, as nginx does (lingering_time)."""
    client = Client(monkeypatch, [(0.5, b"x" * 1000)] * 1000)
    discard(client, unread)
    assert client.now == pytest.approx(30)


def test_end_of_the_client_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the client has closed there is nothing to wait for."""
    client = Client(monkeypatch, [(0.1, b"x"), (0.1, b""), (0.0, b"")])
    discard(client, 1000)
    assert client.now == pytest.approx(0.2)


def test_undeclared_body_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunked body has no length that bounds it: a fixed number of bytes does."""
    client = Client(monkeypatch, [(0.001, b"x" * (1 << 24))] * 1000)
    discard(client, None)
    assert client.discarded <= (1 << 28) + (1 << 25)


def test_few_may_linger_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of eight connections of a worker may; the others have a second, so that they take no others' place."""
    room = Lingering(16)
    times: list[float] = []

    def linger_beside(depth: int) -> None:
        client = Client(monkeypatch, [])
        if depth:
            client.during = lambda: linger_beside(depth - 1) if not times else None
        discard(client, 1000, room)
        times.append(client.now)

    linger_beside(2)
    assert times == [LINGER_GRACE_S, 5.0, 5.0]
    times.clear()
    linger_beside(0)
    assert times == [5.0], "the places came back"
