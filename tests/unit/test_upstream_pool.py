"""The pool of connections to a model server: which are kept, which is taken, and what is sent a second time."""

import random
import socket
import threading
import time
from collections import Counter
from typing import Any

import pytest

from app.config.route_schema import Timeouts
from app.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from app.upstream import connection as connection_module
from app.upstream import pool as pool_module
from app.upstream.connection import Connection
from app.upstream.dialer import Address
from app.upstream.pool import Pool, Response
from app.upstream.resolver import Resolver, SocketAddress
from tests.support.clients import readable
from tests.support.scripted_server import (
    Peer,
    Script,
    ScriptedServer,
    answer,
    answer_and_close,
    answer_and_reset,
    answer_each,
)

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
pytestmark = pytest.mark.slow

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED_HELLO = OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
TIMEOUTS = Timeouts(connect_s=20, first_byte_s=20, idle_s=20, total_s=20)


POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"


class Client:
    """A pool of connections to a server, and how many of them were found stale."""

    def __init__(self, server: ScriptedServer, *, repeats: bool = True) -> None:
        self.pool = Pool(Address(server.host, server.port), Resolver())
        self.stale = self.contacts = 0
        self._repeats = repeats

    def send(self, request: bytes = GET, timeouts: Timeouts = TIMEOUTS) -> Response:
        """The answer to a request, still to be read."""
        method = request.partition(b" ")[0].decode()
        return self.pool.send(request, method, timeouts, time.monotonic() + timeouts.total_s, self)

    def ask(self, request: bytes = GET) -> bytes:
        """The body of the answer to a request, read and closed."""
        taken = self.send(request)
        body = b"".join(taken.body())
        taken.close()
        return body

    def may_repeat(self) -> bool:
        """See `Sender`."""
        self.stale += 1
        return self._repeats

    def contacts_server(self) -> None:
        """See `Sender`."""
        self.contacts += 1


def forever(peer: Peer) -> None:
    """A script: answer every request, as long as the client is there."""
    try:
        while True:
            answer(HELLO)(peer)
    except (AssertionError, ConnectionError):
        pass  # it hung up


def connections_of(server: ScriptedServer) -> list[int]:
    """Which connection each request came on."""
    return [number for number, _ in server.seen]


def await_end(client: Client) -> None:
    """Return once what the server did with the only idle connection has arrived here."""
    (connection,) = client.pool._idle
    assert readable(connection._socket.sock, 20)


@pytest.mark.parametrize("sent", [HELLO, CHUNKED_HELLO])
def test_connection_is_used_again(sent: bytes) -> None:
    """One request after the other takes one connection in all."""
    with ScriptedServer(answer_each(*[sent] * 5)) as server:
        client = Client(server)
        assert [client.ask() for _ in range(5)] == [b"hello"] * 5
        client.pool.close()
    assert server.connections == 1
    assert client.stale == 0


def test_one_used_last_is_used_next() -> None:
    """The most recent connection is the least likely to be stale, and lets the others grow old and be closed."""
    with ScriptedServer(forever) as server:
        client = Client(server)
        answers = [client.send() for _ in range(3)]
        for at in (0, 2, 1):
            assert b"".join(answers[at].body()) == b"hello"
            answers[at].close()
        for _ in range(3):
            client.ask()
        held = [client.send() for _ in range(3)]
        assert connections_of(server) == [0, 1, 2, 1, 1, 1, 1, 2, 0]
        for each in held:
            each.close()
        client.pool.close()


def test_no_more_are_kept_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst leaves no more than MAX_IDLE connections behind."""
    monkeypatch.setattr(pool_module, "MAX_IDLE", 2)
    with ScriptedServer(answer_each(HELLO, HELLO), answer_each(HELLO, HELLO), answer(HELLO), forever) as server:
        client = Client(server)
        answers = [client.send() for _ in range(3)]
        for each in answers:
            assert b"".join(each.body()) == b"hello"
            each.close()
        held = [client.send() for _ in range(3)]
        assert connections_of(server) == [0, 1, 2, 1, 0, 3]
        for each in held:
            each.close()
        client.pool.close()


def test_old_ones_are_closed_and_younger_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections idle for longer than MAX_IDLE_S are closed when pruned or when the next is taken; others are not."""
    now = 1000.0
    monkeypatch.setattr(pool_module, "monotonic", lambda: now)
    with ScriptedServer(forever) as server:
        client = Client(server)
        first, second = client.send(), client.send()
        for each in (first, second):
            assert b"".join(each.body()) == b"hello"
            each.close()
            now += pool_module.MAX_IDLE_S * 0.75
        client.pool.prune()  # the first is 1.5 times too old, the second is not
        held = [client.send(), client.send()]
        assert connections_of(server) == [0, 1, 1, 2]
        for each in held:
            assert b"".join(each.body()) == b"hello"
            each.close()
        now += pool_module.MAX_IDLE_S
        client.ask()  # just as old as they may be
        assert connections_of(server)[-1] == 2
        now += pool_module.MAX_IDLE_S + 1
        client.ask()
        assert connections_of(server)[-1] == 3
        now += pool_module.MAX_IDLE_S + 1
        client.pool.prune()
        server.wait_done()


def test_connection_is_renewed_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection serves no request after its maximum age, be it ever so busy, nor is it kept until the next one."""
    now = 1000.0
    monkeypatch.setattr(pool_module, "monotonic", lambda: now)
    monkeypatch.setattr(connection_module, "monotonic", lambda: now)
    timeouts = Timeouts(total_s=1e6, connection_max_age_s=100)
    with ScriptedServer(forever) as server:
        client = Client(server)

        def ask() -> None:
            taken = client.pool.send(GET, "GET", timeouts, now + 1e6, client)
            assert b"".join(taken.body()) == b"hello"
            taken.close()

        for _ in range(9):  # up to 80 s
            ask()
            now += 10
        assert set(connections_of(server)) == {0}
        now += 20
        ask()  # closed when it is given back
        assert connections_of(server)[-1] == 0
        ask()
        assert connections_of(server)[-1] == 1
        for _ in range(5):
            now += 22
            client.pool.prune()  # closed although it has not been idle for long
            ask()
        assert connections_of(server)[-1] == 2
        client.pool.close()


def test_ages_differ() -> None:
    """Connections that are made together are not renewed together."""
    with ScriptedServer(forever) as server:
        client = Client(server)
        held = [client.send() for _ in range(20)]
        ages = [taken._connection.expires_at - time.monotonic() for taken in held if taken._connection]
        assert max(ages) - min(ages) > 1
        assert all(250 < age < 350 for age in ages)
        for taken in held:
            taken.close()


class Moving(Resolver):
    """A resolver whose names have all the address that the test says."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host

    def resolve(self, host: str, within: float) -> list[SocketAddress]:
        """See Resolver."""
        return [SocketAddress(socket.AF_INET, self.host)]

    def hosts(self, host: str) -> frozenset[str]:
        """See Resolver."""
        return frozenset([self.host] if self.host else [])


def test_connections_to_a_former_address_are_not_used() -> None:
    """After a name has moved, its idle connections are closed, and those in use when they are given back."""
    with ScriptedServer(forever) as before, ScriptedServer(forever, host="127.0.0.2", port=before.port) as after:
        client = Client(before)
        resolver = client.pool._resolver = Moving(before.host)
        held, idle = client.send(), client.send()
        assert b"".join(idle.body()) == b"hello"
        idle.close()
        client.pool.prune()
        client.ask()
        assert connections_of(before) == [0, 1, 1]
        resolver.host = ""  # the lookup fails
        client.pool.prune()
        client.ask()
        assert connections_of(before) == [0, 1, 1, 1]
        resolver.host = after.host
        client.pool.prune()
        assert b"".join(held.body()) == b"hello"
        held.close()
        for _ in range(3):
            client.ask()
        assert len(before.seen) == 4
        assert connections_of(after) == [0, 0, 0]
        before.wait_done()
        client.pool.close()


@pytest.mark.parametrize("last_words", [b"", b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"])
def test_connection_that_ended_while_idle_is_not_used(last_words: bytes) -> None:
    """A connection that its server closed, or spoke on unasked, is replaced before anything is sent on it."""
    go, done = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        answer(HELLO)(peer)
        assert go.wait(20)
        if last_words:
            peer.send(last_words)
        else:
            peer.close()
        done.set()

    with ScriptedServer(script, answer(HELLO)) as server:
        client = Client(server)
        assert client.ask() == b"hello"
        go.set()
        assert done.wait(20)
        await_end(client)
        assert client.ask() == b"hello"
        client.pool.close()
    assert connections_of(server) == [0, 1]
    assert client.stale == 0


def then(first: Script, second: Script) -> Script:
    """A script: the first, and then the second."""

    def script(peer: Peer) -> None:
        first(peer)
        second(peer)

    return script


@pytest.mark.parametrize("hang_up", [answer_and_close(), answer_and_reset()], ids=["FIN", "RST"])
def test_request_on_a_connection_that_ends_unanswered_is_sent_once_more(hang_up: Script) -> None:
    """A server may close an idle connection just as a request comes: it is sent on a fresh one, and that is counted."""
    with ScriptedServer(then(answer(HELLO), hang_up), answer(HELLO)) as server:
        client = Client(server)
        assert [client.ask(), client.ask()] == [b"hello", b"hello"]
        assert client.stale == 1
        client.pool.close()
    assert connections_of(server) == [0, 0, 1]


def test_post_that_was_read_is_not_sent_again() -> None:
    """A server that reads a request and hangs up, at once or after some work, may have processed it: 502, once."""
    for work_s in (0.0, 0.005, 0.2):

        def crash(peer: Peer, work_s: float = work_s) -> None:
            peer.read_request()
            assert not threading.Event().wait(work_s)
            peer.close()

        with ScriptedServer(then(answer(HELLO), crash), forever) as server:
            client = Client(server)
            client.ask(POST)
            with pytest.raises(UpstreamBroken, match="hung up before the head"):
                client.ask(POST)
            assert client.stale == 0
        assert connections_of(server) == [0, 0]


def test_post_that_was_worked_on_is_not_sent_again_after_a_reset() -> None:
    """A reset that comes later than the race of an idle connection may end the work of a server, or of a proxy."""

    def give_up(peer: Peer) -> None:
        peer.read_request()
        assert not threading.Event().wait(0.3)  # longer than Linux delays an acknowledgement
        peer.reset()

    with ScriptedServer(then(answer(HELLO), give_up), forever) as server:
        client = Client(server)
        client.ask(POST)
        with pytest.raises(UpstreamBroken, match="the connection broke"):
            client.ask(POST)
        assert client.stale == 0
    assert connections_of(server) == [0, 0]


@pytest.mark.parametrize("hang_up", [Peer.close, Peer.reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("length", [5, 1 << 20, 32 << 20])
def test_post_to_a_connection_that_was_closed_before_is_sent_again(
    hang_up: Script, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that ended just before the request came has not carried it, however long it is."""
    go, done = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        answer(HELLO)(peer)
        assert go.wait(20)
        hang_up(peer)
        done.set()

    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length + b"x" * length
    with ScriptedServer(script, answer(HELLO)) as server:
        client = Client(server)
        client.ask(POST)
        go.set()
        assert done.wait(20)
        await_end(client)
        monkeypatch.setattr(Connection, "is_quiet", lambda _: True)  # as if it had ended just after the look
        monkeypatch.setattr(connection_module, "_RACE_S", -1.0)  # as if the reset came late
        assert client.ask(request) == b"hello"
        assert client.stale == 1
        client.pool.close()
    assert connections_of(server) == [0, 1]


@pytest.mark.parametrize("half_first", [False, True], ids=["at once", "half first"])
def test_post_that_was_not_read_is_sent_again(half_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed at the moment at which the request comes, and with it unread, has not carried it."""
    monkeypatch.setattr(connection_module, "_RACE_S", 5.0)  # however slow this machine is

    def script(peer: Peer) -> None:
        answer(HELLO)(peer)
        peer.wait_readable()
        if half_first:
            peer.shut_down()
        peer.close()

    with ScriptedServer(script, answer(HELLO)) as server:
        client = Client(server)
        client.ask(POST)
        assert client.ask(POST) == b"hello"
        assert client.stale == 1
        client.pool.close()
    assert connections_of(server) == [0, 1]


def test_repeat_needs_the_retry_budget() -> None:
    """A request that could be repeated is not when the budget is used up: the failure is reported."""
    with ScriptedServer(then(answer(HELLO), answer_and_close()), forever) as server:
        client = Client(server, repeats=False)
        client.ask()
        with pytest.raises(UpstreamBroken, match="retry budget is used up"):
            client.ask()
        assert client.stale == 1
    assert connections_of(server) == [0, 0]


@pytest.mark.parametrize("half_first", [False, True], ids=["at once", "half first"])
def test_idle_connections_that_end_at_random_cost_no_request(half_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that closes idle connections at any moment: each POST is served, and read by the server once.

    1000 of them, and more until one has met such a moment, which a busy machine makes rare.
    """
    monkeypatch.setattr(connection_module, "_RACE_S", 5.0)
    served: Counter[bytes] = Counter()
    gap_s = 0.0001

    def impatient(peer: Peer) -> None:
        try:
            served[peer.read_request()] += 1
            peer.send(HELLO)
            while peer.wait_readable(random.uniform(0, 2 * gap_s)):
                served[peer.read_request()] += 1
                peer.send(HELLO)
        except AssertionError:
            return  # the client hung up: the test is over
        if half_first:
            peer.shut_down()
        peer.close()

    with ScriptedServer(impatient) as server:
        client = Client(server)
        number, deadline = 0, time.monotonic() + 20
        while number < 1000 or (not client.stale and time.monotonic() < deadline):
            number += 1
            pause_ends = time.monotonic() + random.uniform(0, 2 * gap_s)
            while time.monotonic() < pause_ends:
                pass
            request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n%05d" % number
            assert client.ask(request) == b"hello"
        client.pool.close()
    assert len(served) == number
    assert set(served.values()) == {1}
    assert client.stale > 0


@pytest.mark.parametrize("hang_up", [answer_and_close(), answer_and_reset()], ids=["FIN", "RST"])
def test_request_is_not_sent_a_third_time(hang_up: Script) -> None:
    """When a stale connection's replacement hangs up too, that is it: no other idle connection is tried."""
    broken = then(answer(HELLO), hang_up)
    with ScriptedServer(broken, forever, hang_up) as server:
        client = Client(server)
        first, second = client.send(), client.send()
        for each in (second, first):
            assert b"".join(each.body()) == b"hello"
            each.close()
        with pytest.raises(UpstreamBroken):
            client.ask()
        assert client.stale == 1
        client.pool.close()
    assert connections_of(server) == [0, 1, 0, 2]


@pytest.mark.parametrize("hang_up", [answer_and_close(), answer_and_reset()], ids=["FIN", "RST"])
def test_request_on_a_fresh_connection_is_sent_once(hang_up: Script) -> None:
    """A server that took a fresh connection and hangs up may have begun to work: nothing is repeated."""
    with ScriptedServer(hang_up) as server:
        client = Client(server)
        with pytest.raises(UpstreamBroken):
            client.ask()
        assert client.stale == 0
    assert connections_of(server) == [0]


@pytest.mark.parametrize(
    "sent",
    [b"H", OK, b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"content-length: 5\r\n\r\nhell"],
    ids=["byte", "half a head", "100", "half a body"],
)
def test_request_whose_answer_began_is_not_sent_again(sent: bytes) -> None:
    """A byte of an answer, be it to say that the request goes on, shows that the server saw it: it is not repeated."""
    with ScriptedServer(then(answer(HELLO), answer_and_close(sent)), forever) as server:
        client = Client(server)
        client.ask()
        with pytest.raises(UpstreamBroken):
            client.ask()
        assert client.stale == 0
    assert connections_of(server) == [0, 0]


def test_request_that_ran_out_of_time_is_not_sent_again() -> None:
    """A server that is silent on a connection used before may be at work: the time is out, and nothing is repeated."""
    with ScriptedServer(answer_each(HELLO, b""), forever) as server:
        client = Client(server)
        client.ask()
        with pytest.raises(UpstreamTimeout):
            client.send(timeouts=Timeouts(first_byte_s=0.05))
        assert client.stale == 0
    assert connections_of(server) == [0, 0]


def test_early_answer_on_a_connection_used_before_counts() -> None:
    """A long body refused at its head is refused, on a connection used before as well: it is not sent a second time."""
    body = b"x" * (32 << 20)
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def refuse(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 413 Too Long\r\ncontent-length: 4\r\n\r\nlong")
        peer.close()

    with ScriptedServer(then(answer(HELLO), refuse), forever) as server:
        client = Client(server)
        client.ask()
        refused = client.send(request)
        assert (refused.head.status, b"".join(refused.body())) == (413, b"long")
        refused.close()
        assert client.ask() == b"hello"  # although the server didn't say so, that connection is of no use any more
        assert client.stale == 0
        client.pool.close()
    assert connections_of(server) == [0, 0, 1]


@pytest.mark.parametrize("sent", [OK + b"content-length: 5\r\n\r\nhel", OK + b"transfer-encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize("read_some", [False, True])
def test_answer_closed_unread_hangs_up(sent: bytes, read_some: bool) -> None:
    """Who wants no more of an answer tells the server so: the connection is closed, and used for nothing else."""
    sent += b"5\r\nhello\r\n" if b"chunked" in sent else b""
    with ScriptedServer(answer(sent), answer(HELLO)) as server:
        client = Client(server)
        unread = client.send()
        body = unread.body()
        if read_some:
            assert next(body)
        unread.close()
        unread.close()
        server.wait_done()
        assert client.ask() == b"hello"
        client.pool.close()
    assert connections_of(server) == [0, 1]


def test_connection_is_given_back_once() -> None:
    """An answer that is closed twice gives its connection back once, or two requests would share it."""
    with ScriptedServer(forever) as server:
        client = Client(server)
        first = client.send()
        assert b"".join(first.body()) == b"hello"
        first.close()
        first.close()
        held = [client.send(), client.send()]
        assert connections_of(server) == [0, 0, 1]
        for each in held:
            each.close()
        client.pool.close()


def test_connection_with_more_than_its_answer_is_not_kept() -> None:
    """Bytes after an answer are not the answer to the next request."""
    with ScriptedServer(answer(HELLO + HELLO), answer(CHUNKED_HELLO + b"x"), answer(HELLO)) as server:
        client = Client(server)
        assert [client.ask() for _ in range(3)] == [b"hello"] * 3
        client.pool.close()
    assert connections_of(server) == [0, 1, 2]


def test_answer_that_says_close_is_the_last_of_its_connection() -> None:
    """A server that announces to hang up is hung up on, and the next request goes elsewhere."""
    with ScriptedServer(answer(OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello")) as server:
        client = Client(server)
        assert [client.ask(), client.ask()] == [b"hello", b"hello"]
    assert connections_of(server) == [0, 1]


@pytest.mark.parametrize("first", ["the response", "its body"])
@pytest.mark.parametrize("whole", [HELLO, CHUNKED_HELLO])
def test_body_that_is_dropped_at_its_last_byte_leaves_the_connection_alone(first: str, whole: bytes) -> None:
    """All bytes were read, but not the end of the iteration. A kept connection must not be closed when that is dropped.

    Otherwise the next request would wait for a response on a connection that is not there, for `first_byte_s`.
    """
    with ScriptedServer(forever if whole is HELLO else answer_each(whole, HELLO)) as server:
        client = Client(server)
        taken = client.send()
        body: Any = taken.body()  # a generator
        assert next(body) == b"hello"
        for close in (taken.close, body.close) if first == "the response" else (body.close, taken.close):
            close()
        assert client.ask() == b"hello"
        assert server.connections == 1 or whole is not HELLO
        client.pool.close()


def test_body_that_is_dropped_late_leaves_the_next_request_alone() -> None:
    """The collector may free a body at any time, also while another request waits on its connection."""
    with ScriptedServer(forever) as server:
        client = Client(server)
        taken = client.send()
        body: Any = taken.body()
        assert next(body) == b"hello"
        taken.close()
        other = client.send()
        body.close()
        assert b"".join(other.body()) == b"hello"
        other.close()
        assert server.connections == 1
        client.pool.close()


def test_closed_pool_keeps_nothing() -> None:
    """A pool that is closed hangs up on what is idle, and on what is still in use as soon as its answer was read."""
    with ScriptedServer(forever) as server:
        client = Client(server)
        in_use = client.send()
        client.ask()
        client.pool.close()
        assert b"".join(in_use.body()) == b"hello"
        in_use.close()
        server.wait_done()
    with pytest.raises(UpstreamUnreachable):
        client.ask()
