"""The addresses of host names, as one worker knows them.

- **A name that hangs stops no other.** The system's resolver blocks its thread, for half a minute or longer when a name
  server is silent. Lookups have threads of their own, and a name has one lookup at a time, so it holds one thread.
- **Addresses are kept.** They are fresh for `FRESH_S`. After that the next request starts a lookup, and requests wait
  for it for `_REFRESH_WAIT_S` after its start. While it takes longer or fails, the last addresses are used.
- **Without any addresses**, a request waits for the lookup that is in progress, as long as it may take to connect. The
  time counts from the start of the lookup: the requests that come to a name that hangs fail at once, instead of each
  after its whole timeout. A failure holds for as long as the lookup took, within bounds.
"""

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from gevent.event import AsyncResult
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from app.errors import UpstreamUnreachable

FRESH_S = 10.0
_REFRESH_WAIT_S = 0.25
_LEAST_PAUSE_S = 1.0
_MOST_NAMES = 512
_IDLE_THREAD_S = 30
_NO_SUCH_NAME = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))

_getaddrinfo = get_original("socket", "getaddrinfo")


class SocketAddress(NamedTuple):
    """An address of a name, without a port."""

    family: int
    host: str
    extra: tuple[Any, ...] = ()
    """What follows the port: flow information and scope of IPv6."""

    def with_port(self, port: int) -> tuple[Any, ...]:
        """Returns the address as `connect` takes it."""
        return self.host, port, *self.extra


Lookup = Callable[[str], Sequence[SocketAddress]]
"""Looks a name up. It runs in a thread, and may block. Raises OSError or UnicodeError."""


class _Found(NamedTuple):
    """How a lookup ended."""

    at: float
    addresses: Sequence[SocketAddress] = ()
    error: OSError | UnicodeError | None = None


class _Name:
    """What is known of a name."""

    __slots__ = ("addresses", "asked_at", "began_at", "due_at", "error", "found_at", "hosts", "lookup", "turn")

    def __init__(self) -> None:
        self.addresses: Sequence[SocketAddress] = ()
        self.hosts: frozenset[str] = frozenset()
        self.error: OSError | UnicodeError | None = None
        self.lookup: AsyncResult[_Found] | None = None
        self.began_at = self.found_at = self.due_at = self.asked_at = 0.0
        self.turn = 0

    def take(self, found: _Found) -> None:
        """Take over how the lookup ended."""
        self.lookup = None
        self.error = found.error
        self.found_at = found.at
        if found.error is None:
            self.addresses = found.addresses
            self.hosts = frozenset(address.host for address in found.addresses)
            self.due_at = found.at + FRESH_S
        else:
            self.due_at = found.at + min(max(found.at - self.began_at, _LEAST_PAUSE_S), FRESH_S)


class Resolver:
    """The names of one worker. Its threads are started by the first lookup, so it may be made before a fork."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._look_up = lookup or look_up
        self._names: dict[str, _Name] = {}
        self._threads: ThreadPool | None = None

    def resolve(self, host: str, within: float) -> Sequence[SocketAddress]:
        """Returns the addresses of a name in the order in which to try them. Raises UpstreamUnreachable.

        Equal addresses take turns, as the first of a name server's response do.
        """
        name = self._current(host)
        if name.lookup is not None:
            wait_s = min(within, _REFRESH_WAIT_S) if name.addresses else within
            left = name.began_at + wait_s - time.monotonic()
            if left > 0:
                name.lookup.wait(left)
                name = self._current(host)
        if name.addresses:
            name.turn += 1
            return _in_turn(name.addresses, name.turn)
        if name.error is None and name.lookup is None:
            raise UpstreamUnreachable(f"{host} has no address", no_such_name=True, not_tried=True)
        if name.error is None:
            raise UpstreamUnreachable(f"the lookup of {host} has not ended within {within:.3g} s", not_tried=True)
        raise UpstreamUnreachable(
            f"the lookup of {host} failed: {name.error}",
            not_tried=True,
            no_such_name=isinstance(name.error, UnicodeError) or name.error.errno in _NO_SUCH_NAME,
        ) from name.error

    def hosts(self, host: str) -> frozenset[str]:
        """Returns the addresses that a name had last, none if they are not known. Starts a lookup if they are old."""
        return self._current(host).hosts

    def doubt(self, host: str) -> None:
        """Look a name up again soon: none of its addresses could be connected to, so it may have moved."""
        name = self._names.get(host)
        if name is not None:
            name.due_at = min(name.due_at, name.found_at + _LEAST_PAUSE_S)

    def _current(self, host: str) -> _Name:
        """Returns what is known of a name. A lookup that has ended is taken over, and one that is due is started."""
        name = self._names.get(host)
        if name is None:
            self._make_room()
            name = self._names[host] = _Name()
            literal = _literal(host)
            if literal:
                name.take(_Found(0.0, literal))
                name.due_at = float("inf")
        name.asked_at = now = time.monotonic()
        if name.lookup is not None:
            found = name.lookup.value  # None until it has ended
            if found is None:
                return name
            name.take(found)
        if name.due_at <= now:
            self._begin_lookup(host, name, now)
        return name

    def _begin_lookup(self, host: str, name: _Name, now: float) -> None:
        if self._threads is None:
            self._threads = ThreadPool(_MOST_NAMES, idle_task_timeout=_IDLE_THREAD_S)
        if len(self._threads) >= _MOST_NAMES:  # by names that hang and that no route has any more; `spawn` would wait
            name.take(_Found(now, error=OSError("too many lookups hang")))
            return
        name.began_at = now
        name.lookup = self._threads.spawn(_find, self._look_up, host)

    def _make_room(self) -> None:
        if len(self._names) >= 2 * _MOST_NAMES:  # routes have at most half of them
            del self._names[min(self._names, key=lambda host: self._names[host].asked_at)]


def look_up(host: str) -> Sequence[SocketAddress]:
    """Ask the system's resolver. Blocks."""
    return _addresses(_getaddrinfo(host, None, type=socket.SOCK_STREAM))


def _literal(host: str) -> Sequence[SocketAddress]:
    """Returns the address of a host that is an address already, or nothing."""
    try:
        return _addresses(_getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except (OSError, UnicodeError):
        return ()


def _addresses(found: Iterable[Any]) -> Sequence[SocketAddress]:
    return tuple(dict.fromkeys(SocketAddress(family, at[0], tuple(at[2:])) for family, _, _, _, at in found))


def _find(lookup: Lookup, host: str) -> _Found:
    try:
        return _Found(time.monotonic(), lookup(host))
    except (OSError, UnicodeError) as error:  # the latter for a host name that IDNA can't encode
        return _Found(time.monotonic(), error=error)


def _in_turn(addresses: Sequence[SocketAddress], turn: int) -> Sequence[SocketAddress]:
    """Returns the addresses with the families in alternation, the first one's first (RFC 8305 section 4).

    Each family begins with the address whose turn it is.
    """
    if len(addresses) == 1:
        return addresses
    families: dict[int, list[SocketAddress]] = {}
    for address in addresses:
        families.setdefault(address.family, []).append(address)
    rotated = [those[turn % len(those) :] + those[: turn % len(those)] for those in families.values()]
    return [address for address in chain.from_iterable(zip_longest(*rotated)) if address is not None]
