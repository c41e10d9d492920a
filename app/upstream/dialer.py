"""Connecting to a model server: the name, TCP and TLS, all within one time.

Several addresses are tried as RFC 8305 ("Happy Eyeballs") has it: an attempt begins when the one before it failed, or
after a delay, and the attempts before go on. The first connection that is made is used, and the others are closed. So
an address that swallows connections costs the delay, and not all of the time.
"""

import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from gevent.monkey import get_original
from gevent.select import poll

from app.errors import UpstreamUnreachable
from app.net.tcp_keepalive import keep_alive
from app.net.timed_socket import TimedSocket
from app.net.tls_files import BrokenTlsFiles, TlsContext, TlsFiles, client_context
from app.upstream.resolver import Resolver, SocketAddress

_PlainSocket = get_original("socket", "socket")

DELAY_S = 0.25  # the Connection Attempt Delay that RFC 8305 section 8 recommends
_LEAST_DELAY_S = 0.01  # the least that it allows
MOST_ADDRESSES = 16
"""No more addresses of a name are tried for one request."""
_MOST_AT_ONCE = 2
"""No more attempts are open at the same time: each takes a descriptor. The oldest one ends for the next."""
_OWN_TROUBLE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))
"""Nothing of these is the model server's: descriptors, memory, or ports of this host are used up."""


class Address(NamedTuple):
    """Where a model server listens."""

    host: str
    port: int
    tls: bool = False
    files: TlsFiles = TlsFiles()
    """Whom to trust, and who to be, beside what is usual."""
    server_name: str = ""
    """The name that its certificate must have; "": that of the host."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def dial(
    address: Address, resolver: Resolver, within: float, on_resolved: Callable[[], None] = lambda: None
) -> tuple[TimedSocket, str]:
    """Returns a connection, and the IP address that it is to. Raises UpstreamUnreachable.

    `on_resolved` is called between the lookup of the name and the first connection attempt.
    """
    deadline = time.monotonic() + within
    addresses = resolver.resolve(address.host, within)
    on_resolved()
    try:
        sock, host = _connect_first(addresses[:MOST_ADDRESSES], address.port, deadline)
        return (_with_tls(sock, address, deadline) if address.tls else TimedSocket(sock)), host
    except TimeoutError as error:
        resolver.doubt(address.host)
        raise UpstreamUnreachable(f"{address}: not connected within {within:.3g} s") from error
    except BrokenTlsFiles as error:
        raise UpstreamUnreachable(f"{address}: {error}", not_tried=True) from error
    except OSError as error:
        resolver.doubt(address.host)
        raise UpstreamUnreachable(f"{address}: {error}", not_tried=error.errno in _OWN_TROUBLE) from error


def _connect_first(addresses: Sequence[SocketAddress], port: int, deadline: float) -> tuple[Any, str]:
    """Returns the first socket that is connected, and its address. Raises TimeoutError, or OSError if all failed."""
    now = time.monotonic()
    # Shortened so that the last of many addresses has at least half of the time.
    delay = max(_LEAST_DELAY_S, min(DELAY_S, (deadline - now) / (2 * len(addresses))))
    waiting = iter(addresses)
    attempts: dict[int, tuple[Any, str]] = {}
    error, next_at, exhausted = OSError("it has no address"), now, False
    poller = poll()
    try:
        while attempts or not exhausted:
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError
            if not exhausted and (now >= next_at or not attempts):
                if (address := next(waiting, None)) is None:
                    exhausted = True
                    continue
                try:
                    sock = _begin(address, port)
                except OSError as failure:
                    error = _telling(error, failure)
                    continue
                _make_room(attempts, poller)
                attempts[sock.fileno()] = sock, address.host
                poller.register(sock.fileno(), select.POLLOUT)
                next_at = now + delay
            wake_at = deadline if exhausted else min(next_at, deadline)
            for descriptor, _ in poller.poll(max(0.0, wake_at - now) * 1000):
                sock, host = attempts.pop(descriptor)
                poller.unregister(descriptor)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return sock, host
                sock.close()
                error, next_at = _telling(error, OSError(code, os.strerror(code))), now  # the next one at once
        raise error
    finally:
        for sock, _ in attempts.values():
            sock.close()


def _make_room(attempts: dict[int, tuple[Any, str]], poller: Any) -> None:
    """Close the oldest attempt if no other may begin beside those that are open."""
    if len(attempts) == _MOST_AT_ONCE:
        oldest = next(iter(attempts))
        poller.unregister(oldest)
        attempts.pop(oldest)[0].close()


def _telling(before: OSError, failure: OSError) -> OSError:
    """Returns the one of two failures that tells more about the model server: the first that is not our own trouble.

    Where IPv6 is switched off, for example, a name's IPv6 addresses fail whatever is wrong with the server.
    """
    return failure if before.errno is None or before.errno in _OWN_TROUBLE else before


def _begin(address: SocketAddress, port: int) -> Any:
    """Returns a socket that connects. Raises OSError."""
    sock = _PlainSocket(address.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        sock.setblocking(False)
        code = sock.connect_ex(address.with_port(port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _with_tls(sock: Any, address: Address, deadline: float) -> TimedSocket:
    made = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())  # as gevent's TLS sockets take it
    try:
        made.setblocking(False)
        made = _context_of(address.files).wrap_socket(
            made,
            server_hostname=address.server_name or address.host,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,  # without TLS's own end, a response may be cut short
        )
        timed = TimedSocket(made)
    except BaseException:
        made.close()
        raise
    try:
        timed.handshake(deadline)
    except BaseException:
        timed.close()
        raise
    return timed


@cache
def _tls_context() -> ssl.SSLContext:
    """Certificates are verified against the system's authorities, or those of SSL_CERT_FILE."""
    return client_context(TlsFiles())


_contexts: dict[TlsFiles, TlsContext] = {}


def _context_of(files: TlsFiles) -> ssl.SSLContext:
    """Returns the context of these files. Raises BrokenTlsFiles if there never was one."""
    return _tls_context() if files == TlsFiles() else _made(files).current


def _made(files: TlsFiles) -> TlsContext:
    context = _contexts.get(files)
    if context is None:
        context = _contexts[files] = TlsContext(files, client_context)
    return context


def contexts(needed: Collection[TlsFiles]) -> list[TlsContext]:
    """Returns the contexts of these files, made now if no connection has needed them yet; without the broken ones."""
    found = []
    for files in set(needed) - {TlsFiles()}:
        with suppress(BrokenTlsFiles):  # who connects gets the error
            found.append(_made(files))
    return found


def forget_contexts(needed: Collection[TlsFiles]) -> None:
    """Forget the contexts of all other files: nothing is to be heard of these any more."""
    for files in _contexts.keys() - set(needed):
        del _contexts[files]
