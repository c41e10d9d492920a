"""One connection to a model server: what it reads, what it refuses, how long it waits, and that it never leaks."""

import ipaddress
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import gevent.socket
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from app.api.forms import Upload
from app.config.route_schema import Timeouts
from app.errors import ClientGone, UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from app.net.timed_socket import TimedSocket
from app.protocols.multipart import FormReader
from app.server.client_connection import ClientConnection
from app.server.declared_body import DeclaredBody
from app.upstream import connection as connection_module
from app.upstream import dialer as dialer_module
from app.upstream.connection import Connection
from app.upstream.dialer import Address
from app.upstream.resolver import Resolver
from app.upstream.response_head import Head, HeadReader
from app.upstream.unread_request import ConnectionClosedUnanswered
from tests.support.certificates import Key, certificate
from tests.support.clients import readable
from tests.support.router import until
from tests.support.scripted_server import (
    Peer,
    Script,
    ScriptedServer,
    answer,
    answer_and_close,
    answer_and_reset,
    answer_each,
)
from tests.support.swallow import swallowing

pytestmark = pytest.mark.slow

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"content-length: 0\r\n\r\n"
MAX_HEAD = 1 << 16
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
LONG_BODY = b"x" * (32 << 20)
"""More than all buffers on the way hold."""
LONG_REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(LONG_BODY) + LONG_BODY


def limits(**seconds: float) -> Timeouts:
    """Timeouts that are never reached, but for those given."""
    return Timeouts(**{"connect_s": 20, "first_byte_s": 20, "idle_s": 20, "total_s": 20, **seconds})


GENEROUS = limits()


def connect(
    server: ScriptedServer, timeouts: Timeouts = GENEROUS, *, host: str | None = None, tls: bool = False
) -> Connection:
    """A connection to the server."""
    return connect_to(Address(host or server.host, server.port, tls), timeouts)


def connect_to(address: Address, timeouts: Timeouts = GENEROUS, resolver: Resolver | None = None) -> Connection:
    """A connection to this address."""
    return Connection(address, timeouts, time.monotonic() + timeouts.total_s, resolver or Resolver())


def ask(
    connection: Connection, method: str = "GET", request: bytes = GET, timeouts: Timeouts = GENEROUS
) -> tuple[Head, bytes]:
    """Head and body of the answer to a request."""
    head = connection.exchange(request, method, timeouts, time.monotonic() + timeouts.total_s)
    return head, b"".join(connection.body())


def failure(
    script: Script, error: type[Exception], *, request: bytes = GET, timeouts: Timeouts = GENEROUS, used: bool = False
) -> str:
    """The message of the error that asking a server of this script ends in; it must have been hung up on."""
    with ScriptedServer(script) as server:
        connection = connect(server)
        connection.used_before = used
        with pytest.raises(error) as caught:
            ask(connection, request=request, timeouts=timeouts)
        server.wait_done()
        assert not connection.may_be_kept()
    return str(caught.value)


class Case(NamedTuple):
    """An answer, and how it must be read."""

    name: str
    answer: bytes
    status: int
    length: int | None
    body: bytes
    kept: bool
    method: str = "GET"


ANSWERS = [
    Case("length", OK + b"Content-Length: 5\r\n\r\nhello", 200, 5, b"hello", True),
    Case("no content", OK + b"Content-Length: 0\r\n\r\n", 200, 0, b"", True),
    Case("same length twice", OK + b"Content-Length: 5\r\ncontent-length:5 \r\n\r\nhello", 200, 5, b"hello", True),
    Case(
        "chunked",
        OK + b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n2\r\n..\r\n0\r\n\r\n",
        200,
        None,
        b"hello..",
        True,
    ),
    Case("trailer", OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n", 200, None, b"x", True),
    Case("to the end", OK + b"\r\nhello", 200, None, b"hello", False),
    Case("to the end, although kept", OK + b"Connection: keep-alive\r\n\r\nhello", 200, None, b"hello", False),
    Case("close", OK + b"Connection: close\r\nContent-Length: 1\r\n\r\nx", 200, 1, b"x", False),
    Case("close among others", OK + b"Connection: a, CLOSE\r\nContent-Length: 1\r\n\r\nx", 200, 1, b"x", False),
    Case(
        "close, in a second field",
        OK + b"Connection: keep-alive\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
        200,
        1,
        b"x",
        False,
    ),
    Case(
        "close after chunks",
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        200,
        None,
        b"",
        False,
    ),
    # A higher minor version is read as HTTP/1.1 (RFC 9110 section 2.5).
    Case("1.2 with length", b"HTTP/1.2 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, 1, b"x", True),
    Case(
        "1.9 with chunks",
        b"HTTP/1.9 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        200,
        None,
        b"x",
        True,
    ),
    Case("1.2 after 100", b"HTTP/1.2 100 C\r\n\r\nHTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n", 200, 0, b"", True),
    Case("1.0 to the end", b"HTTP/1.0 200 OK\r\n\r\nhello", 200, None, b"hello", False),
    Case("1.0 with length", b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, 1, b"x", False),
    Case(
        "1.0 kept",
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nx",
        200,
        1,
        b"x",
        True,
    ),
    Case("HEAD with length", OK + b"Content-Length: 5\r\n\r\n", 200, 0, b"", True, "HEAD"),
    Case("HEAD with chunks", OK + b"Transfer-Encoding: chunked\r\n\r\n", 200, 0, b"", True, "HEAD"),
    Case("204", b"HTTP/1.1 204 No Content\r\n\r\n", 204, 0, b"", True),
    Case("304 with length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, 0, b"", True),
    Case("100 before", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx", 200, 1, b"x", True),
    Case(
        "103 and 102 before",
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx",
        200,
        1,
        b"x",
        True,
    ),
    Case("no reason", b"HTTP/1.1 500\r\nContent-Length: 1\r\n\r\nx", 500, 1, b"x", True),
    Case("empty reason", b"HTTP/1.1 429 \r\nContent-Length: 1\r\n\r\nx", 429, 1, b"x", True),
    Case("reason in latin-1", b"HTTP/1.1 404 nicht da\xdf\r\nContent-Length: 1\r\n\r\nx", 404, 1, b"x", True),
    Case("more than the answer", OK + b"Content-Length: 1\r\n\r\nxHTTP/1.1 200", 200, 1, b"x", False),
    Case("more than the chunks", OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", 200, None, b"", False),
    Case("body to HEAD", OK + b"Content-Length: 5\r\n\r\nhello", 200, 0, b"", False, "HEAD"),
    Case("body of 204", b"HTTP/1.1 204 No Content\r\n\r\nhello", 204, 0, b"", False),
]


@pytest.mark.parametrize("case", ANSWERS, ids=[case.name for case in ANSWERS])
def test_answer_is_read_and_the_connection_kept_by_the_rules(case: Case) -> None:
    """How a body ends and whether another request may follow: RFC 9112 sections 6.3 and 9.3, case by case."""
    with ScriptedServer(answer_and_close(case.answer)) as server:
        connection = connect(server)
        head, body = ask(connection, case.method)
        assert (head.status, head.length, body) == (case.status, case.length, case.body)
        assert connection.may_be_kept() == case.kept
        connection.close()
        assert not connection.may_be_kept()


@pytest.mark.parametrize("case", ANSWERS, ids=[case.name for case in ANSWERS])
def test_answer_cut_anywhere_reads_alike(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few bytes come at once, and wherever the first piece ends, the answer is the same."""
    with ScriptedServer(answer_and_close(case.answer)) as server:
        for size in range(1, len(case.answer)):
            monkeypatch.setattr(connection_module, "_READ_BYTES", size)
            connection = connect(server)
            head, body = ask(connection, case.method)
            assert (head.status, head.length, body) == (case.status, case.length, case.body)
            assert case.kept <= connection.may_be_kept()  # what follows an answer may not have been read
            connection.close()


def test_headers_keep_order_repetition_and_bytes() -> None:
    """Headers are given in order, repeated ones too, names in lower case, values without the blanks around them."""
    script = answer(
        OK
        + b"Set-Cookie: a=1\r\nX-B:\t v: w \t\r\nSET-COOKIE: b=2\r\nx-c:\r\n"
        + b"X-D: \xa0\xe4\x85\r\nContent-Length: 0\r\n\r\n"
    )
    with ScriptedServer(script) as server:
        connection = connect(server)
        head, _ = ask(connection)
        connection.close()
    assert head.headers == [
        ("set-cookie", "a=1"),
        ("x-b", "v: w"),
        ("set-cookie", "b=2"),
        ("x-c", ""),
        ("x-d", "\xa0\xe4\x85"),
        ("content-length", "0"),
    ]


def test_body_is_given_as_it_comes() -> None:
    """Every piece of a stream is passed on before the next is sent, and none of them is empty."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK + b"transfer-encoding: chunked\r\n\r\n")
        for word in (b"one", b"two"):
            peer.send(b"3\r\n%s\r\n" % word)
            assert go.wait(20)
            go.clear()
        peer.send(b"0\r\n\r\n")

    with ScriptedServer(script) as server:
        connection = connect(server)
        connection.exchange(GET, "GET", GENEROUS, time.monotonic() + 20)
        words = []
        for word in connection.body():
            words.append(word)
            go.set()
        assert words == [b"one", b"two"]
        assert connection.may_be_kept()
        connection.close()


def test_requests_follow_each_other_on_one_connection() -> None:
    """After an answer of any kind that was read to its end, the next request goes out on the same connection."""
    kept = [case for case in ANSWERS if case.kept]
    with ScriptedServer(answer_each(*(case.answer for case in kept))) as server:
        connection = connect(server)
        for case in kept:
            head, body = ask(connection, case.method)
            assert (head.status, body) == (case.status, case.body)
            assert connection.may_be_kept()
            connection.used_before = True
        connection.close()
    assert server.connections == 1


@pytest.mark.parametrize("framing", [b"content-length: 5\r\n\r\nhel", b"transfer-encoding: chunked\r\n\r\n5\r\nhel"])
def test_answer_that_was_not_read_to_its_end_spoils_the_connection(framing: bytes) -> None:
    """What is left of an answer must never be taken for the beginning of the next one."""
    with ScriptedServer(answer(OK + framing)) as server:
        connection = connect(server)
        connection.exchange(GET, "GET", GENEROUS, time.monotonic() + 20)
        assert not connection.may_be_kept()
        body = connection.body()
        assert next(body)
        assert not connection.may_be_kept()
        body.close()  # type: ignore[attr-defined]  # it is a generator
        server.wait_done()


# What was sent before the server hung up, and how the message ends then.
BROKEN_OFF = [
    ("nothing", b"", "before the head of the response was complete"),
    ("half a status line", b"HTTP/1.1 20", "before the head of the response was complete"),
    ("half a head", OK + b"Content-Length: 5\r\n", "before the head of the response was complete"),
    ("100 only", b"HTTP/1.1 100 Continue\r\n\r\n", "before the head of the response was complete"),
    ("half a body", OK + b"Content-Length: 5\r\n\r\nhel", "2 bytes before the end of the response"),
    ("half a chunk", OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", "before the last chunk of the response"),
    ("no last chunk", OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", "before the last chunk of the response"),
    ("no end of it", OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", "before the last chunk of the response"),
]
BROKEN_OFF_IDS = [name for name, _, _ in BROKEN_OFF]


@pytest.mark.parametrize(("sent", "why"), [(sent, why) for _, sent, why in BROKEN_OFF], ids=BROKEN_OFF_IDS)
@pytest.mark.parametrize("used", [False, True])
def test_answer_that_breaks_off_is_broken(sent: bytes, why: str, used: bool) -> None:
    """A server that hangs up in the midst of an answer answered nothing; sent again is only what had no byte of one."""
    if used and not sent:
        assert failure(answer_and_close(), ConnectionClosedUnanswered, used=True) == ""
    else:
        assert failure(answer_and_close(sent), UpstreamBroken, used=used).endswith(why)


@pytest.mark.parametrize("sent", [sent for _, sent, _ in BROKEN_OFF] + [OK + b"\r\nhello"])
@pytest.mark.parametrize("used", [False, True])
def test_answer_that_is_reset_is_broken(sent: bytes, used: bool) -> None:
    """The same for RST, and a body that goes to the end of the connection does not end there."""
    error = ConnectionClosedUnanswered if used and not sent else UpstreamBroken
    failure(answer_and_reset(sent), error, used=used)


NO_HTTP = {
    "TE and CL": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "CL and TE": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "lengths in one field": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "negative length": OK + b"Content-Length: -5\r\n\r\n",
    "length with plus": OK + b"Content-Length: +5\r\n\r\nhello",
    "length in hex": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "length with underscore": OK + b"Content-Length: 1_0\r\n\r\n0123456789",
    "length in other digits": OK + b"Content-Length: \xb2\r\n\r\nhe",
    "empty length": OK + b"Content-Length:\r\n\r\n",
    "endless length": OK + b"Content-Length: 1000000000000000000\r\n\r\n",
    "TE gzip": OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "TE gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE empty": OK + b"Transfer-Encoding:\r\n\r\n",
    "TE in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded": OK + b"X-A: a\r\n b\r\n\r\n",
    "folded first": OK + b" X-A: a\r\n\r\n",
    "blank before colon": OK + b"Content-Length : 0\r\n\r\n",
    "no colon": OK + b"Content-Length\r\n\r\n",
    "no name": OK + b": a\r\n\r\n",
    "name not ASCII": OK + b"X-\xe4: a\r\n\r\n",
    "NUL in value": OK + b"X-A: a\x00b\r\n\r\n",
    "NUL in name": OK + b"X-\x00A: b\r\n\r\n",
    "DEL in value": OK + b"X-A: a\x7fb\r\n\r\n",
    "bare CR": OK + b"X-A: a\rb\r\n\r\n",
    "bare LF": OK + b"X-A: a\nX-B: b\r\n\r\n",
    "bare LF after status": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "no status line": b"hello\r\n\r\n",
    "nothing but an end": b"\r\n\r\n",
    "line before": b"\r\n" + EMPTY,
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "HTTP/1.10": b"HTTP/1.10 200 OK\r\n\r\n",
    "version in other digits": b"HTTP/1.\xb2 200 OK\r\n\r\n",
    "http": b"http/1.1 200 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\n\r\n",
    "two blanks": b"HTTP/1.1  200 OK\r\n\r\n",
    "NUL in reason": b"HTTP/1.1 200 O\x00K\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "bad 100": b"HTTP/1.1 100 Continue\r\nX-A : a\r\n\r\n" + EMPTY,
    "bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "bad chunk later": OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n-1\r\n\r\n",
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
@pytest.mark.parametrize("used", [False, True])
def test_what_is_not_exactly_http_is_refused(sent: bytes, used: bool) -> None:
    """An answer that another reader might read otherwise is none, and the server is hung up on."""
    failure(answer(sent), UpstreamBroken, used=used)


def head_of(length: int) -> bytes:
    """A head of so many bytes, without its end."""
    head = OK + b"Content-Length: 0\r\nX-Long: "
    return head + b"a" * (length - len(head))


@pytest.mark.parametrize("size", [1 << 16, 1 << 10, 65_537, 1 << 20])
def test_head_of_64_kib_is_read_and_no_longer_one(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greatest head is read and one byte more refused, whether its end has come or not, however it is cut."""
    monkeypatch.setattr(connection_module, "_READ_BYTES", size)
    with ScriptedServer(answer(head_of(MAX_HEAD) + b"\r\n\r\n")) as server:
        connection = connect(server)
        assert ask(connection)[0].status == 200
        connection.close()
    for sent in (head_of(MAX_HEAD + 1) + b"\r\n\r\n", head_of(MAX_HEAD + 4), OK * MAX_HEAD):
        assert "longer than 65536 bytes" in failure(answer(sent), UpstreamBroken)


# Sent in answer, the one time that is short, and the message.
WAITS = [
    ("first byte", b"", "first_byte_s", "no first byte of a response within 0.05 s"),
    ("first byte after 100", b"HTTP/1.1 100 C\r\n\r\n", "first_byte_s", "no first byte of a response within 0.05 s"),
    ("rest of the head", b"HTTP/1.1", "idle_s", "nothing more of the head of the response within 0.05 s"),
    (
        "first piece",
        OK + b"content-length: 9\r\n\r\n",
        "first_byte_s",
        "no first byte of the response's body within 0.05 s",
    ),
    (
        "first piece of a stream",
        OK + b"\r\n",
        "first_byte_s",
        "no first byte of the response's body within 0.05 s",
    ),
    (
        "first byte of a chunk",
        OK + b"transfer-encoding: chunked\r\n\r\n9\r\n",
        "first_byte_s",
        "no first byte of the response's body within 0.05 s",
    ),
    ("rest of a body", OK + b"content-length: 9\r\n\r\nx", "idle_s", "nothing more of the response within 0.05 s"),
    ("rest of a stream", OK + b"\r\nx", "idle_s", "nothing more of the response within 0.05 s"),
    (
        "rest of a chunk",
        OK + b"transfer-encoding: chunked\r\n\r\n9\r\nx",
        "idle_s",
        "nothing more of the response within 0.05 s",
    ),
    ("all, no byte", b"", "total_s", "not done within 0.05 s in total"),
    ("all, half a head", b"HTTP/1.1", "total_s", "not done within 0.05 s in total"),
    ("all, half a body", OK + b"\r\nx", "total_s", "not done within 0.05 s in total"),
    (
        "all, half a chunk",
        OK + b"transfer-encoding: chunked\r\n\r\n9\r\nx",
        "total_s",
        "not done within 0.05 s in total",
    ),
]


@pytest.mark.parametrize(
    ("sent", "which", "message"),
    [(sent, which, message) for _, sent, which, message in WAITS],
    ids=[w[0] for w in WAITS],
)
@pytest.mark.parametrize("used", [False, True])
def test_every_wait_has_its_own_time(sent: bytes, which: str, message: str, used: bool) -> None:
    """A server that says nothing more is waited for as long as that step may take, and then hung up on.

    What it says is there before it is asked: a head that came late would be what was waited for in vain.
    """

    def script(peer: Peer) -> None:
        peer.send(sent)
        peer.read_request()

    with ScriptedServer(script) as server:
        connection = connect(server)
        connection.used_before = used
        assert not sent or readable(connection._socket.sock, 20)
        with pytest.raises(UpstreamTimeout) as caught:
            ask(connection, timeouts=limits(**{which: 0.05}))
        server.wait_done()
        assert not connection.may_be_kept()
    assert str(caught.value) == message


def test_interim_responses_are_bounded_together() -> None:
    """A server that sends interim responses for ever is broken, long before all of its time is over."""
    script = partial(Peer.send_until_hung_up, piece=b"HTTP/1.1 100 C\r\n\r\n")
    assert "interim responses (1xx) are longer than 65536 bytes" in failure(script, UpstreamBroken)
    few = b"HTTP/1.1 102 P\r\n\r\n" * 3000
    with ScriptedServer(answer(few + EMPTY)) as server:
        connection = connect(server)
        assert ask(connection)[0].status == 200
        connection.close()


@pytest.mark.alone
def test_head_that_drips_costs_the_same_for_each_byte() -> None:
    """The work for a byte does not grow with what came before it, or one server could hold a core."""

    def cost(before: int) -> float:
        reader = HeadReader("GET")
        assert reader.feed(head_of(before)) is None
        began = time.thread_time()
        for _ in range(2000):
            reader.feed(b"a")
        return time.thread_time() - began

    assert min(cost(60_000) for _ in range(5)) < 5 * max(cost(100) for _ in range(5))


# How the body of a stream begins: its head, what is not a byte of the body yet, and its first byte with what follows.
STREAMS = [
    (OK + b"transfer-encoding: chunked\r\n\r\n", b"5;ext=", b"1\r\nhello\r\n0\r\n\r\n"),
    (OK + b"content-length: 5\r\n\r\n", b"", b"hello"),
    (OK + b"\r\n", b"", b"hello"),
]


@pytest.mark.parametrize(("head", "before", "body"), STREAMS, ids=["chunked", "length", "to the end"])
def test_first_byte_of_the_body_has_its_own_time(head: bytes, before: bytes, body: bytes) -> None:
    """`first_byte_s` lasts from the request to the first byte of the body, be the head there at once."""
    go, timeouts = threading.Event(), limits(idle_s=0.5)

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(head)
        assert not go.wait(0.6)  # longer than `idle_s`
        peer.send(before)
        assert not go.wait(0.6)
        peer.send(body)
        peer.close()

    with ScriptedServer(script) as server:
        connection = connect(server)
        began = time.monotonic()
        connection.exchange(GET, "GET", timeouts, time.monotonic() + 20)
        assert connection.first_byte_at is None
        assert b"".join(connection.body()) == b"hello"
        assert connection.first_byte_at is not None
        assert connection.first_byte_at - began >= 1.2
        connection.close()


def test_first_byte_is_waited_for_from_the_end_of_the_request() -> None:
    """The time of the head is part of it: head and first byte don't have `first_byte_s` each."""

    def script(peer: Peer) -> None:
        peer.read_request()
        assert not threading.Event().wait(2)
        peer.send(OK + b"transfer-encoding: chunked\r\n\r\n")

    began = time.monotonic()
    message = failure(script, UpstreamTimeout, timeouts=limits(first_byte_s=4))
    assert message == "no first byte of the response's body within 4 s"
    assert time.monotonic() - began < 5.9


def test_body_of_an_error_is_not_waited_for_as_a_first_token() -> None:
    """A model takes long to its first token, and no time to say what was wrong with a request."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 413 Too Long\r\ncontent-length: 3\r\n\r\n")

    assert "within 0.5 s" in failure(script, UpstreamTimeout, timeouts=limits(idle_s=0.5))


@pytest.mark.parametrize("piece", [b"x", b"HTTP/1.1 103 E\r\n\r\n"], ids=["head", "interim responses"])
def test_head_that_drips_has_no_longer_for_the_first_byte(piece: bytes) -> None:
    """What comes before the body does not start `first_byte_s` again, and `idle_s` does not replace it."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK + b"X: " if piece == b"x" else b"")
        while not peer.wait_readable(0.1):
            peer.send(piece)

    began = time.monotonic()
    message = failure(script, UpstreamTimeout, timeouts=limits(first_byte_s=1, idle_s=15))
    assert "within 1 s" in message
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("head", [OK + b"\r\n", OK + b"transfer-encoding: chunked\r\n\r\n"])
def test_answer_that_never_ends_is_cut_off(head: bytes) -> None:
    """A server that goes on for ever is never idle, but the time in total runs out all the same."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(head)
        peer.send_until_hung_up(b"1\r\nx\r\n" if b"chunked" in head else b"x")

    assert "in total" in failure(script, UpstreamTimeout, timeouts=limits(total_s=0.2))


@pytest.mark.parametrize("which", ["idle_s", "total_s"])
@pytest.mark.parametrize("used", [False, True])
def test_request_that_is_not_taken_is_given_up(which: str, used: bool) -> None:
    """A server that stops reading the request is not written to for ever; it may have begun, so nothing is repeated."""
    stop = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        assert stop.wait(20)

    with ScriptedServer(script) as server:
        connection = connect(server)
        connection.used_before = used
        with pytest.raises(UpstreamTimeout, match="not taken within" if which == "idle_s" else "in total"):
            ask(connection, "POST", LONG_REQUEST, limits(**{which: 0.1}))
        stop.set()


class SlowlyTaken(TimedSocket):
    """A socket of which the kernel never takes more than a little at once."""

    def send_now(self, data: Any) -> int:
        return super().send_now(data[: 1 << 16])


def test_request_that_is_taken_in_small_pieces_has_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in total is looked at before every piece of the request, or a slow reader could have it for ever."""

    def script(peer: Peer) -> None:
        peer.read_head()  # the rest is read until the client hangs up

    with ScriptedServer(script) as server:
        monkeypatch.setattr(dialer_module, "TimedSocket", SlowlyTaken)
        connection = connect(server)
        seconds = itertools.count()
        monkeypatch.setattr(connection_module, "monotonic", lambda: next(seconds))
        with pytest.raises(UpstreamTimeout, match="in total"):
            connection.exchange(LONG_REQUEST, "POST", GENEROUS, 3)


@pytest.mark.parametrize("used", [False, True])
def test_answer_to_half_a_request_is_read(used: bool) -> None:
    """A server may refuse a long body at its head and hang up; its answer counts, not that the rest found no taker."""

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 413 Too Long\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong")
        peer.close()

    with ScriptedServer(script) as server:
        connection = connect(server)
        connection.used_before = used
        head, body = ask(connection, "POST", LONG_REQUEST)
        assert (head.status, body) == (413, b"long")
        assert not connection.may_be_kept()
        connection.close()


@pytest.mark.parametrize(("used", "error"), [(False, UpstreamBroken), (True, ConnectionClosedUnanswered)])
def test_server_that_resets_half_a_request_has_not_answered(used: bool, error: type[Exception]) -> None:
    """A request that could not be sent to its end and has no answer is an answer that broke off before it began."""

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.reset()

    failure(script, error, request=LONG_REQUEST, used=used)


def test_idle_connection_is_quiet_until_the_server_does_anything() -> None:
    """What an idle connection has to say can only be its end or an answer to nothing: it is of no use then."""
    for last_words in (b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"):
        go, done = threading.Event(), threading.Event()

        def script(peer: Peer) -> None:
            answer(EMPTY)(peer)
            assert go.wait(20)
            if last_words:
                peer.send(last_words)
            else:
                peer.close()
            done.set()

        with ScriptedServer(script) as server:
            connection = connect(server)
            ask(connection)
            assert connection.is_quiet()
            go.set()
            assert done.wait(20)
            until(lambda: not connection.is_quiet(), "what the server did has arrived")
            connection.close()
            connection.close()


def test_refused_connection_is_unreachable() -> None:
    """Where nobody listens, nobody has seen the request: that must be known for sure, or it can't be sent elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UpstreamUnreachable, match=rf"127\.0\.0\.1:{port}: .*refused"):
        connect_to(Address("127.0.0.1", port))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two..dots.invalid", f"{'x' * 64}.invalid", "\udcff.invalid"])
def test_name_without_an_address_is_unreachable(host: str) -> None:
    """A name that can't be resolved, or is none at all, is a server out of reach and no fault of the router's."""
    with pytest.raises(UpstreamUnreachable):
        connect_to(Address(host, 1))


@pytest.mark.parametrize("which", ["connect_s", "total_s"])
def test_connecting_takes_no_longer_than_it_may(which: str) -> None:
    """A server that accepts no more connections is out of reach after connect_s, or when the time in total runs out."""
    timeouts = limits(**{which: 0.5})
    with (
        socket.create_server(("127.0.0.1", 0)) as holder,
        swallowing(port := holder.getsockname()[1], "127.0.0.2"),
        pytest.raises(UpstreamUnreachable, match=r"not connected within 0\.[0-5]"),
    ):
        connect_to(Address("127.0.0.2", port), timeouts)


def test_nothing_is_begun_when_no_time_is_left() -> None:
    """With the time in total used up by earlier attempts, the server is neither connected to nor asked."""
    with ScriptedServer(answer(EMPTY)) as server:
        with pytest.raises(UpstreamTimeout, match="in total"):
            Connection(Address(server.host, server.port), GENEROUS, time.monotonic(), Resolver())
        server.wait_done()
        assert server.connections == 0
        connection = connect(server)
        with pytest.raises(UpstreamTimeout, match="in total"):
            connection.exchange(GET, "GET", GENEROUS, time.monotonic())
        with pytest.raises(AssertionError, match="before its request was complete"):
            server.wait_done()
        server.forgive()


def test_client_that_goes_away_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is thrown into a wait for the model server, it is hung up on, so that it stops working for nobody."""

    def gone(*_: object, **__: object) -> bytes:
        raise ClientGone

    with ScriptedServer(answer(OK + b"\r\nx"), answer(OK + b"\r\nx")) as server:
        connection = connect(server)
        connection.exchange(GET, "GET", GENEROUS, time.monotonic() + 20)
        body = connection.body()
        assert next(body) == b"x"
        monkeypatch.setattr(Connection, "_receive", gone)
        with pytest.raises(ClientGone):
            next(body)
        server.wait_done()
        other = connect(server)
        with pytest.raises(ClientGone):
            ask(other)
        server.wait_done()
        assert not other.may_be_kept()


def test_ipv6_server_is_reached_and_named_in_brackets() -> None:
    """IPv6 addresses work as others do, and a message never blends address and port."""
    try:
        server = ScriptedServer(answer(EMPTY), host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        connection = connect(server)
        assert ask(connection)[0].status == 200
        connection.close()
    with pytest.raises(UpstreamUnreachable, match=rf"^\[::1\]:{server.port}: "):
        connect(server)


class Certificates(NamedTuple):
    """Files of two authorities, and what a server has of the first: for `localhost` and 127.0.0.1, and another."""

    authority: Path
    stranger: Path
    good: ssl.SSLContext
    misnamed: ssl.SSLContext


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made anew for every run, valid for a day."""
    folder = tmp_path_factory.mktemp("certificates")
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()

    def write(name: str, made: tuple[x509.Certificate, Key]) -> Path:
        path = folder / f"{name}.pem"
        key = made[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password)
        path.write_bytes(made[0].public_bytes(pem) + key)
        return path

    def context(path: Path) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(path)
        return made

    authority = certificate("authority", [])
    local: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return Certificates(
        write("authority", authority),
        write("stranger", certificate("stranger", [])),
        context(write("good", certificate("good", local, authority))),
        context(write("misnamed", certificate("misnamed", [x509.DNSName("elsewhere.test")], authority))),
    )


@pytest.fixture
def trusting(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> Iterator[Certificates]:
    """The authority is trusted, as operators do it: by SSL_CERT_FILE."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    dialer_module._tls_context.cache_clear()
    yield certificates
    dialer_module._tls_context.cache_clear()


@pytest.mark.parametrize("work_s", [0.0, 0.003])
def test_post_that_was_read_over_tls_is_not_repeated(trusting: Certificates, work_s: float) -> None:
    """A server that crashes ends TCP without an end of TLS. The reset that follows does not say what was read."""

    def script(peer: Peer) -> None:
        answer(EMPTY)(peer)
        peer.read_request()
        assert not threading.Event().wait(work_s)
        peer.close()

    with ScriptedServer(script, tls=trusting.good) as server:
        connection = connect(server, tls=True)
        assert ask(connection, "POST", POST)[0].status == 200
        connection.used_before = True
        with pytest.raises(UpstreamBroken):
            ask(connection, "POST", POST)


def test_post_that_was_begun_long_ago_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long request a server may have read a part and worked on it: a reset that comes later proves nothing."""

    def script(peer: Peer) -> None:
        answer(EMPTY)(peer)
        peer.read_head()
        assert not threading.Event().wait(0.3)
        peer.close()  # with the rest of the body unread: a reset

    with ScriptedServer(script) as server:
        connection = connect(server)
        assert ask(connection, "POST", POST)[0].status == 200
        connection.used_before = True
        with pytest.raises(UpstreamBroken):
            ask(connection, "POST", LONG_REQUEST)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_carries_requests_and_is_kept(trusting: Certificates, host: str) -> None:
    """Over TLS everything is as without, and tickets after the handshake don't make a connection look ended."""
    with ScriptedServer(answer_each(*[OK + b"content-length: 5\r\n\r\nhello"] * 3), tls=trusting.good) as server:
        connection = connect(server, host=host, tls=True)
        for _ in range(3):
            head, body = ask(connection)
            assert (head.status, body) == (200, b"hello")
            assert connection.may_be_kept()
            assert connection.is_quiet()
        connection.close()
    assert server.connections == 1


def test_wrong_host_name_is_unreachable(trusting: Certificates) -> None:
    """A certificate for another host is no proof of being the model server: it sees no request."""
    with ScriptedServer(answer(EMPTY), tls=trusting.misnamed) as server:
        with pytest.raises(UpstreamUnreachable, match=r"localhost:\d+: .*Hostname mismatch.*'localhost'"):
            connect(server, host="localhost", tls=True)
        server.wait_done()
    assert not server.seen


def test_unknown_authority_is_unreachable(trusting: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a certificate that nobody we trust has signed."""
    monkeypatch.setenv("SSL_CERT_FILE", str(trusting.stranger))
    with ScriptedServer(answer(EMPTY), tls=trusting.good) as server:
        with pytest.raises(UpstreamUnreachable, match="unable to get local issuer certificate"):
            connect(server, host="localhost", tls=True)
        server.wait_done()
    assert not server.seen


def test_tls_to_a_plain_server_is_unreachable(trusting: Certificates) -> None:
    """A server that doesn't speak TLS is out of reach, and one that says nothing is so after connect_s."""
    with ScriptedServer(lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        with pytest.raises(UpstreamUnreachable, match="SSL"):
            connect(server, tls=True)
        server.wait_done()
    with ScriptedServer(lambda _: None) as server:
        with pytest.raises(UpstreamUnreachable, match=r"not connected within 0\.1 s"):
            connect(server, limits(connect_s=0.1), tls=True)
        server.wait_done()


def test_client_that_goes_away_during_the_handshake_closes_the_connection(
    trusting: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is closed whatever interrupts the handshake, at once and not when somebody collects the garbage."""

    def gone(*_: object) -> None:
        raise ClientGone

    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", gone)
    with ScriptedServer(lambda _: None) as server:
        with pytest.raises(ClientGone) as caught:
            connect(server, tls=True)
        server.wait_done()
        assert caught.traceback  # which holds on to the socket until here


@pytest.mark.parametrize("announced", [True, False])
def test_end_that_tls_did_not_announce_is_none(trusting: Certificates, announced: bool) -> None:
    """A body that goes to the end of the connection is whole only if TLS says that it is the end (RFC 9112, 9.8)."""

    def script(peer: Peer) -> None:
        answer(OK + b"\r\nhello")(peer)
        if announced:
            peer.say_goodbye()
        else:
            peer.close()

    with ScriptedServer(script, tls=trusting.good) as server:
        connection = connect(server, tls=True)
        if announced:
            assert ask(connection)[1] == b"hello"
            connection.close()
        else:
            with pytest.raises(UpstreamBroken):
                ask(connection)


@pytest.mark.parametrize("goodbye", [Peer.say_goodbye, Peer.close, Peer.reset])
def test_tls_connection_that_was_closed_while_idle_is_told_apart(trusting: Certificates, goodbye: Script) -> None:
    """An idle TLS connection that ends, in whichever way, left the request unanswered."""

    def script(peer: Peer) -> None:
        answer_each(EMPTY, b"")(peer)
        goodbye(peer)

    with ScriptedServer(script, tls=trusting.good) as server:
        connection = connect(server, tls=True)
        ask(connection)
        connection.used_before = True
        with pytest.raises(ConnectionClosedUnanswered):
            ask(connection)


TOO_LONG = b"HTTP/1.1 413 Too Long\r\ncontent-length: 4\r\n\r\nlong"
EARLY = {
    "413": (TOO_LONG,),
    "401, in pieces": (b"HTTP/1.1 401 Un", b"authorized\r\ncontent-length: 4\r\n", b"\r\nlo", b"ng"),
    "307": (b"HTTP/1.1 307 Elsewhere\r\ncontent-length: 4\r\n\r\nlong",),
    "413, chunked": (b"HTTP/1.1 413 Too Long\r\ntransfer-encoding: chunked\r\n\r\n4\r\nlong\r\n0\r\n\r\n",),
    "413 after 100": (b"HTTP/1.1 100 Continue\r\n\r\n", TOO_LONG),
    "200": (OK + b"content-length: 4\r\n\r\nlong",),
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(("status", "pieces"), [(int(n[:3]), p) for n, p in EARLY.items()], ids=EARLY)
def test_early_response_is_read_while_the_request_is_sent(
    trusting: Certificates, status: int, pieces: tuple[bytes, ...], tls: bool
) -> None:
    """A server that responds without reading the body is heard at once (RFC 9112 section 9.5), and then hung up on."""
    done = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        for piece in pieces:
            peer.send(piece)
        assert done.wait(20)  # nothing more is read until the client has heard of it

    with ScriptedServer(script, tls=trusting.good if tls else None) as server:
        connection = connect(server, tls=tls)
        head, body = ask(connection, "POST", LONG_REQUEST)
        assert (head.status, body) == (status, b"long")
        assert not connection.may_be_kept()
        connection.close()
        done.set()


@pytest.mark.alone
def test_nothing_more_is_sent_after_an_early_error() -> None:
    """The rest of a request that was refused is not sent, also while the response is still being read."""
    taken = []

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 413 Too Long\r\n\r\nlo")
        taken.append(peer.discard_until_quiet(0.5))
        peer.send(b"ng")
        peer.close()

    with ScriptedServer(script) as server:
        connection = connect(server)
        head, body = ask(connection, "POST", LONG_REQUEST)
        assert (head.status, body) == (413, b"long")
        connection.close()
    assert taken[0] < len(LONG_BODY) - (1 << 20)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_interim_response_does_not_end_the_request(trusting: Certificates, tls: bool) -> None:
    """100 Continue and 103 Early Hints come while the request is sent: the rest of it is sent all the same."""
    taken = []

    def script(peer: Peer) -> None:
        body = peer.read_request(after_head=lambda: peer.send(b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.1 103 E\r\n\r\n"))
        taken.append(len(body))
        peer.send(EMPTY)

    with ScriptedServer(script, tls=trusting.good if tls else None) as server:
        connection = connect(server, tls=tls)
        assert ask(connection, "POST", LONG_REQUEST)[0].status == 200
        assert connection.may_be_kept()
        connection.close()
    assert taken == [len(LONG_BODY)]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_server_that_responds_while_it_reads_gets_the_whole_request(trusting: Certificates, tls: bool) -> None:
    """A server that has accepted the request may read and respond in turn: neither side waits for the other."""
    taken = []
    piece = b"y" * (1 << 20)

    def script(peer: Peer) -> None:
        body = peer.read_request(after_head=lambda: peer.send(OK + b"\r\n", *[piece] * 16))
        taken.append(len(body))
        peer.send(b"end")
        if tls:
            peer.say_goodbye()
        else:
            peer.close()

    with ScriptedServer(script, tls=trusting.good if tls else None) as server:
        connection = connect(server, tls=tls)
        head, body = ask(connection, "POST", LONG_REQUEST)
        assert head.status == 200
        assert body == piece * 16 + b"end"
        assert not connection.may_be_kept()
        connection.close()
    assert taken == [len(LONG_BODY)]


def test_ordinary_request_is_sent_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading while sending costs nothing where nothing is left to send: one send, one wait, one recv."""
    calls = []

    class Counting(TimedSocket):
        def send_now(self, data: Any) -> int:
            calls.append("send")
            return super().send_now(data)

        def recv(self, size: int, timeout_s: float) -> bytes:
            calls.append("recv")
            return super().recv(size, timeout_s)

        def recv_now(self, size: int) -> bytes | None:
            calls.append("recv now")
            return super().recv_now(size)

    monkeypatch.setattr(dialer_module, "TimedSocket", Counting)
    with ScriptedServer(answer(EMPTY)) as server:
        connection = connect(server)
        assert ask(connection)[0].status == 200
        connection.close()
    assert calls == ["send", "recv"]


def test_errors_are_upstream_errors() -> None:
    """Everything that a caller must map to a status has one root; a stale connection is no failure and hasn't."""
    assert all(issubclass(error, UpstreamError) for error in (UpstreamBroken, UpstreamTimeout, UpstreamUnreachable))
    assert not issubclass(ConnectionClosedUnanswered, UpstreamError)


@pytest.mark.parametrize("framing", [b"content-length: 300", b"x: y"], ids=["length", "end"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_more_of_a_body_is_foreseen(
    trusting: Certificates, framing: bytes, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether more comes within a time: of what was received already, of what is on its way, and of the end."""
    monkeypatch.setattr(connection_module, "_READ_BYTES", 100)
    go, end = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK + framing + b"\r\n\r\n")
        assert go.wait(20)
        peer.send(b"x" * 300)  # one record of TLS, which is read in pieces
        assert end.wait(20)
        if tls:
            peer.say_goodbye()
        else:
            peer.close()

    with ScriptedServer(script, tls=trusting.good if tls else None) as server:
        connection = connect(server, tls=tls)
        connection.exchange(GET, "GET", GENEROUS, time.monotonic() + 20)
        body = connection.body()
        assert not connection.has_more_within(0.1)
        go.set()
        for _ in range(3):
            assert connection.has_more_within(20)
            assert next(body) == b"x" * 100
        assert connection.has_more_within(0.1) == (framing != b"x: y")
        end.set()
        assert connection.has_more_within(20)
        assert next(body, None) is None
        connection.close()


def test_end_of_a_chunked_body_is_foreseen() -> None:
    """Nothing has to be waited for, although nothing else comes on the connection."""
    with ScriptedServer(answer(OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")) as server:
        connection = connect(server)
        connection.exchange(GET, "GET", GENEROUS, time.monotonic() + 20)
        body = connection.body()
        assert connection.has_more_within(20)
        assert next(body) == b"x"
        assert connection.has_more_within(0)
        assert next(body, None) is None
        connection.close()


# Bodies that are still arriving.


def arriving(head: bytes, content: bytes) -> tuple[Upload, bytes, socket.socket, ClientConnection]:
    """A form that a client sends: what is still to come of it, its beginning, and both ends of the connection."""
    server, client = gevent.socket.socketpair()
    connection = ClientConnection(server, 20.0)
    connection.set_read_deadline(20.0)
    body = DeclaredBody(connection, head, 0, len(head) + len(content))
    environ = {"wsgi.input": body, "gunicorn.socket": connection}
    upload = Upload(environ, len(head) + len(content), 1 << 30, FormReader(b"x"))
    return upload, upload.read(), client, connection


FORM_HEAD = b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n'
FORM_END = b"\r\n--x--\r\n"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_body_that_is_still_arriving_is_sent_whole(trusting: Certificates, tls: bool) -> None:
    """Piece by piece, also where TLS has messages of its own; and first_byte_s counts from its end."""
    content = b"z" * (4 << 20) + FORM_END
    received: list[bytes] = []

    def script(peer: Peer) -> None:
        received.append(peer.read_request())
        peer.send(EMPTY)

    upload, begun, client, held = arriving(FORM_HEAD, content)
    with ScriptedServer(script, tls=trusting.good if tls else None) as server:
        connection = connect(server, limits(first_byte_s=2), host="localhost" if tls else None, tls=tls)
        sender = gevent.spawn(client.sendall, content)
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (len(FORM_HEAD) + len(content))
        assert connection.exchange(head, "POST", GENEROUS, time.monotonic() + 20, (begun,), upload).status == 200
        assert list(connection.body()) == []
        assert connection.may_be_kept()
        connection.close()
        sender.join()
    assert received == [FORM_HEAD + content]
    client.close()
    held.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_server_is_heard_while_the_client_is_silent(trusting: Certificates, tls: bool) -> None:
    """A response that comes before the body has, ends the wait for the client; an error ends the request."""
    upload, begun, client, held = arriving(FORM_HEAD, b"z" * 1000 + FORM_END)

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 429 Busy\r\ncontent-length: 2\r\n\r\n{}")

    with ScriptedServer(script, tls=trusting.good if tls else None) as server:
        connection = connect(server, host="localhost" if tls else None, tls=tls)
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n"
        assert connection.exchange(head, "POST", GENEROUS, time.monotonic() + 20, (begun,), upload).status == 429
        assert b"".join(connection.body()) == b"{}"
        assert not connection.may_be_kept()
        assert not upload.begun  # so another endpoint may be tried
        connection.close()
    client.close()
    held.close()
