"""The begin of a client's TLS connection, and what its certificate says of it.

The handshake runs in the connection's own greenlet and has one deadline for everything, however steadily a client
trickles. So it holds up neither other connections nor the accepting of new ones.

A worker that stops waits for the handshakes in progress, as it does for requests that may be on their way. Else a
reload would break connections that clients have just opened. It waits for each a few seconds at most (`Handshake`).
"""

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import gevent
from gunicorn.http.errors import ParseException

from app.native import monotonic
from app.net.peer_address import unmapped
from app.server.client_connection import IDLE_GRACE_S, ClientConnection, Facts
from app.server.worker_context import WorkerContext

_HANDSHAKE = b"\x16"
"""The first byte of every TLS connection: the type of its first record (RFC 8446 section 5.1)."""
_NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
_GRACE_S = 5.0  # of a handshake that has begun: two round trips, the work of both sides, and a busy machine

_Handle = Callable[[Any, Any, Any, Facts], None]
_AnswerMalformed = Callable[[ClientConnection, Any, Exception, str, bytes], None]


class Handshake:
    """A handshake in progress, as a drain looks at it: the methods are those of ClientConnection."""

    def __init__(self) -> None:
        self._until = monotonic() + IDLE_GRACE_S

    def begin(self) -> None:
        """The client's first byte has come."""
        self._until = monotonic() + _GRACE_S

    def is_busy(self) -> bool:
        """Whether a request is being served: not yet."""
        return False

    def has_request(self) -> bool:
        """Whether a request has begun to arrive: not yet."""
        return False

    def expects_request(self) -> bool:
        """Whether it may end soon, with a request to follow."""
        return monotonic() < self._until

    def end(self) -> None:
        """Do nothing: it has a timeout, and ends with the worker at the latest."""


class HandshakeFailed(ParseException):
    """The connection does not become one of TLS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        """As in metrics (observability/tls_metrics.py). `plain_http`: it began with something other than TLS."""


def after_handshake(
    handle: _Handle,
    current: Callable[[], ssl.SSLContext],
    context: WorkerContext,
    connections: set[ClientConnection | Handshake],
    answer_malformed: _AnswerMalformed,
) -> Callable[[Any, Any, Any], None]:
    """Returns what serves a connection that has to begin with a TLS handshake: after it, `handle` does.

    `current` returns the context for a new connection. `connections` are those that a drain waits for: the handshake is
    among them until it ends, and nothing yields from then until `handle` has added the connection. What is not TLS gets
    a response in plain text, which `answer_malformed` sends and logs.
    """

    def handle_tls(listener: Any, client: Any, addr: Any) -> None:
        handshake = Handshake()
        connections.add(handshake)
        try:
            secured = shake_hands(client, current(), context.stall_timeout_s, handshake)
        except HandshakeFailed as failure:
            host = unmapped(addr[0]) if isinstance(addr, tuple) else ""
            context.count_handshake(failure.reason)
            if failure.reason != "plain_http":
                context.log_handshake(host, str(failure))
                return
            connection = ClientConnection(client, context.stall_timeout_s)
            try:
                answer_malformed(connection, (host,), failure, "", b"")
            finally:
                connection.close()
            return
        finally:
            connections.discard(handshake)
        if secured is not None:
            handle(listener, secured, addr, connection_facts(secured))

    return handle_tls


def shake_hands(client: Any, context: ssl.SSLContext, within_s: float, handshake: Handshake) -> Any:
    """Returns the client's socket under TLS, or None if the client leaves. Raises HandshakeFailed.

    If it fails, the socket of the client is closed, but for `plain_http`.
    """
    try:
        with gevent.Timeout(within_s, TimeoutError):
            first = client.recv(1, socket.MSG_PEEK)
            handshake.begin()
            if first in (b"", _HANDSHAKE):
                return _under_tls(client, context) if first else client.close()
    except TimeoutError:
        client.close()
        raise HandshakeFailed("timeout", f"no TLS handshake within {within_s:g} s") from None
    except ssl.SSLError as error:
        client.close()
        refused = isinstance(error, ssl.SSLCertVerificationError) or error.reason == _NO_CERTIFICATE
        raise HandshakeFailed("certificate" if refused else "protocol", _detail(error)) from None
    except OSError:
        return client.close()  # the client left
    raise HandshakeFailed("plain_http", "the request was sent without TLS to a port that takes TLS only")


def _under_tls(client: Any, context: ssl.SSLContext) -> Any:
    wrapped = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
    try:
        wrapped.do_handshake()
        if wrapped.session_reused:
            _check_expiry(wrapped.getpeercert())
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def _check_expiry(certificate: dict[str, Any] | None) -> None:
    """Raises HandshakeFailed for the certificate of a resumed session that has expired since.

    OpenSSL verifies a certificate once, when the session begins. Its sessions belong to a context, so they end with the
    files of authorities. `ssl` can't switch off those of TLS 1.2 that are resumed by their id (`server_context` does so
    for tickets). The connection is closed without a close_notify. For that OpenSSL forgets the session, and the client
    has to begin another one.
    """
    if certificate and time.time() >= ssl.cert_time_to_seconds(certificate["notAfter"]):
        raise HandshakeFailed("certificate", "the client's certificate is not accepted: it has expired")


def _detail(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {error.verify_message}"
    if error.reason == _NO_CERTIFICATE:
        return "the client shows no certificate"
    return f"TLS handshake failed: {error.reason or error.strerror}"


def connection_facts(client: Any) -> Facts:
    """Returns what the environ of each request says of a TLS connection."""
    facts = {"wsgi.url_scheme": "https"}
    name = certificate_name(client.getpeercert())
    if name:
        facts["router.client_certificate_name"] = name
    return facts


def certificate_name(certificate: dict[str, Any] | None) -> str:
    """Returns the name in a verified certificate, in the form of `SSLSocket.getpeercert`, or "".

    That is the first URI among its alternative names (SPIFFE has exactly one), or else the first DNS name, or else the
    common name of its subject: the order of Envoy's `principal_name`.
    """
    if not certificate:
        return ""
    alternatives = certificate.get("subjectAltName", ())
    for kind in ("URI", "DNS"):
        for found, name in alternatives:
            if found == kind and name:
                return str(name)
    subject = [pair for attributes in certificate.get("subject", ()) for pair in attributes]
    return next((str(name) for kind, name in subject if kind == "commonName"), "")
