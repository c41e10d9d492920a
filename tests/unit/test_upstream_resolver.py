"""The resolver: which addresses a name has, how long a lookup may hold others up, and what is kept."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import gevent
import pytest

from app.errors import UpstreamUnreachable
from app.upstream import resolver as resolver_module
from app.upstream.resolver import Resolver, SocketAddress
from tests.support.router import until

pytestmark = pytest.mark.slow

LONG_S = 20.0
"""What takes longer than this will never come."""


def v4(*hosts: str) -> list[SocketAddress]:
    """IPv4 addresses."""
    return [SocketAddress(socket.AF_INET, host) for host in hosts]


def v6(*hosts: str) -> list[SocketAddress]:
    """IPv6 addresses."""
    return [SocketAddress(socket.AF_INET6, host, (0, 0)) for host in hosts]


class NameServer:
    """Names and their addresses. A name with an event hangs until that is set; one with an error fails by it."""

    def __init__(self, **names: list[SocketAddress] | OSError | threading.Event) -> None:
        self.names = names
        self.lookups: Counter[str] = Counter()

    def __call__(self, host: str) -> list[SocketAddress]:
        self.lookups[host] += 1
        found = self.names[host]
        if isinstance(found, threading.Event):
            assert found.wait(LONG_S)
            found = self.names[host]
        if isinstance(found, OSError):
            raise found
        assert isinstance(found, list)
        return found


@contextmanager
def hanging() -> Iterator[threading.Event]:
    """What a name hangs on, until the end of the test at the latest."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


class Clock:
    """The resolver's clock, which goes only when a test puts it forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the resolver in this test."""
    made = Clock()
    monkeypatch.setattr(resolver_module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def hosts(resolver: Resolver, name: str, within: float = LONG_S) -> list[str]:
    """The addresses of a name."""
    return [address.host for address in resolver.resolve(name, within)]


def until_known(resolver: Resolver, name: str, wanted: set[str]) -> None:
    """Wait until the background lookup has found these addresses."""
    deadline = time.monotonic() + LONG_S
    while resolver.hosts(name) != wanted:
        assert time.monotonic() < deadline
        gevent.sleep(0.001)


def gone(code: int = socket.EAI_AGAIN) -> socket.gaierror:
    """How a lookup fails."""
    return socket.gaierror(code, "no luck")


def test_names_that_hang_hold_no_other_up() -> None:
    """More hanging names than the system's pool has threads, each asked often: another name is resolved at once."""
    with hanging() as event:
        server = NameServer(good=v4("10.0.0.1"), **{f"bad{number}": event for number in range(40)})
        resolver = Resolver(server)
        waiting = [gevent.spawn(resolver.resolve, f"bad{number % 40}", LONG_S) for number in range(200)]
        gevent.sleep(0)
        assert hosts(resolver, "good") == ["10.0.0.1"]
        assert set(server.lookups.values()) == {1}
        assert not any(one.ready() for one in waiting)
        server.names.update({f"bad{number}": v4("10.0.0.2") for number in range(40)})
        event.set()
        with gevent.Timeout(LONG_S):
            gevent.joinall(waiting)
        assert [one.get() for one in waiting] == [v4("10.0.0.2")] * 200


def test_name_that_hangs_fails_within_the_time_and_then_at_once() -> None:
    """The time counts from the start of the lookup: requests that come later don't each wait for it again."""
    with hanging() as event:
        resolver = Resolver(NameServer(bad=event))
        with pytest.raises(UpstreamUnreachable, match=r"the lookup of bad has not ended within 0\.5 s") as first:
            resolver.resolve("bad", 0.5)
        assert first.value.not_tried
        assert not first.value.no_such_name
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(UpstreamUnreachable):
                resolver.resolve("bad", 0.5)
        assert time.monotonic() - began < 5


def test_fresh_addresses_are_not_looked_up_again(clock: Clock) -> None:
    """One lookup serves all requests for as long as its addresses are fresh."""
    server = NameServer(name=v4("10.0.0.1"))
    resolver = Resolver(server)
    for _ in range(10):
        assert hosts(resolver, "name") == ["10.0.0.1"]
        clock.now += resolver_module.FRESH_S / 11
    assert server.lookups["name"] == 1
    clock.now += resolver_module.FRESH_S
    assert hosts(resolver, "name") == ["10.0.0.1"]
    until(lambda: server.lookups["name"] == 2, "the next lookup has begun")


def test_name_that_moved_is_followed(clock: Clock) -> None:
    """Once its addresses are old, the next request waits for a quick lookup and gets the new ones."""
    server = NameServer(name=v4("10.0.0.1"))
    resolver = Resolver(server)
    assert hosts(resolver, "name") == ["10.0.0.1"]
    server.names["name"] = v4("10.0.0.2")
    assert hosts(resolver, "name") == ["10.0.0.1"]
    clock.now += resolver_module.FRESH_S
    until_known(resolver, "name", {"10.0.0.2"})
    assert hosts(resolver, "name") == ["10.0.0.2"]


@pytest.mark.parametrize("trouble", ["fails", "does not exist", "hangs"])
def test_last_addresses_serve_while_lookups_do_not_work(
    clock: Clock, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup that fails or hangs takes nothing away, and one that works again brings the new addresses."""
    if trouble != "hangs":
        monkeypatch.setattr(resolver_module, "_REFRESH_WAIT_S", LONG_S)  # each lookup has ended before the next one
    with hanging() as event:
        server = NameServer(name=v4("10.0.0.1"))
        resolver = Resolver(server)
        assert hosts(resolver, "name") == ["10.0.0.1"]
        kinds: dict[str, OSError | threading.Event] = {"fails": gone(), "does not exist": gone(socket.EAI_NONAME)}
        server.names["name"] = kinds.get(trouble, event)
        for _ in range(3):
            clock.now += 2 * resolver_module.FRESH_S
            assert hosts(resolver, "name") == ["10.0.0.1"]
        until(lambda: server.lookups["name"] == (2 if trouble == "hangs" else 4), "each lookup has begun")
        server.names["name"] = v4("10.0.0.2")
        event.set()
        clock.now += 2 * resolver_module.FRESH_S
        until_known(resolver, "name", {"10.0.0.2"})


def test_failure_holds_for_a_while(clock: Clock) -> None:
    """A name that fails at once is not looked up for every request, and is again after a pause."""
    server = NameServer(name=gone())
    resolver = Resolver(server)
    for _ in range(10):
        with pytest.raises(UpstreamUnreachable, match=r"the lookup of name failed: .*no luck") as caught:
            resolver.resolve("name", LONG_S)
        assert caught.value.not_tried
    assert server.lookups["name"] == 1
    server.names["name"] = v4("10.0.0.1")
    clock.now += resolver_module._LEAST_PAUSE_S
    assert hosts(resolver, "name") == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("error", "no_such_name"), [(gone(), False), (gone(socket.EAI_NONAME), True), (gone(socket.EAI_FAIL), False)]
)
def test_name_that_does_not_exist_is_told_from_a_lookup_that_failed(error: OSError, no_such_name: bool) -> None:
    """The first is a fact about the endpoint, the second the trouble of whoever asks."""
    with pytest.raises(UpstreamUnreachable) as caught:
        Resolver(NameServer(name=error)).resolve("name", LONG_S)
    assert caught.value.no_such_name == no_such_name


@pytest.mark.parametrize("host", ["two..dots.invalid", f"{'x' * 64}.invalid", "\udcff.invalid"])
def test_what_is_no_name_does_not_exist(host: str) -> None:
    """A host that can't be looked up at all, with the system's own resolver."""
    with pytest.raises(UpstreamUnreachable) as caught:
        Resolver().resolve(host, LONG_S)
    assert caught.value.no_such_name


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%lo"])
def test_literal_address_needs_no_lookup(host: str) -> None:
    """An IP address is taken as it is, without a thread."""
    server = NameServer()
    resolver = Resolver(server)
    assert hosts(resolver, host) == [host.partition("%")[0]]
    assert resolver.resolve(host, 0)[0].with_port(80)[1] == 80
    assert not server.lookups


def test_system_resolver_is_asked() -> None:
    """Without another one, names are looked up as all programs of the host do."""
    assert set(hosts(Resolver(), "localhost")) <= {"127.0.0.1", "::1"}


def test_families_alternate_and_equals_take_turns() -> None:
    """The first family stays first (RFC 8305 section 4); within a family every address is the first in turn."""
    resolver = Resolver(NameServer(name=v6("::1", "::2") + v4("10.0.0.1", "10.0.0.2", "10.0.0.3")))
    seen = [hosts(resolver, "name") for _ in range(6)]
    for order in seen:
        assert [":" in host for host in order] == [True, False, True, False, False]
        assert len(set(order)) == 5
    assert Counter(order[0] for order in seen) == {"::1": 3, "::2": 3}
    assert Counter(order[1] for order in seen) == {"10.0.0.1": 2, "10.0.0.2": 2, "10.0.0.3": 2}


def test_doubted_name_is_looked_up_soon(clock: Clock) -> None:
    """A name whose addresses can't be connected to is looked up before they are old, but not for every request."""
    server = NameServer(name=v4("10.0.0.1"))
    resolver = Resolver(server)
    hosts(resolver, "name")
    server.names["name"] = v4("10.0.0.2")
    for _ in range(10):
        resolver.doubt("name")
        hosts(resolver, "name")
    assert server.lookups["name"] == 1
    clock.now += resolver_module._LEAST_PAUSE_S
    resolver.doubt("name")
    until_known(resolver, "name", {"10.0.0.2"})
    assert server.lookups["name"] == 2


def test_threads_and_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names hang or were asked for, the resolver keeps no more than so many, and says why it fails."""
    monkeypatch.setattr(resolver_module, "_MOST_NAMES", 2)
    with hanging() as event:
        server = NameServer(one=event, two=event, three=v4("10.0.0.3"))
        resolver = Resolver(server)
        for name in ("one", "two"):
            with pytest.raises(UpstreamUnreachable, match="not ended"):
                resolver.resolve(name, 0.01)
        with pytest.raises(UpstreamUnreachable, match="too many lookups hang"):
            resolver.resolve("three", LONG_S)
        for number in range(10):
            hosts(resolver, f"127.0.0.{number + 1}")
        assert len(resolver._names) <= 4
        server.names.update(one=v4("10.0.0.1"), two=v4("10.0.0.2"))
