"""An exchange releases what it holds exactly once, however it ends, and calls on_end once."""

import errno
import gc
import re
import socket
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import gevent
import pytest
from gevent.event import Event
from gevent.socket import wait_read

from app import native
from app.admission.model_limit import ModelLimit
from app.api.exchange import ENVIRON_KEY, Exchange
from app.api.outermost import with_exchange
from app.errors import ClientGone, LimitReached, QueueTimeout
from app.server.client_connection import ClientConnection
from tests.support.forks import Parent, acquire

HEADERS = [("Content-Type", "text/plain")]


class Broken(Exception):
    """What an application or a body raises in these tests."""


class Body:
    """A response body that counts its closing, and breaks where it is told to."""

    def __init__(self, chunks: Iterable[bytes] = (b"a", b"b"), raises: BaseException | None = None) -> None:
        self.closed = 0
        self.close_raises: BaseException | None = None
        self._chunks = chunks
        self._raises = raises

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        if self._raises is not None:
            raise self._raises

    def close(self) -> None:
        self.closed += 1
        if self.close_raises is not None:
            raise self.close_raises


class Stage:
    """An application that takes the only permit and answers with a body, inside the layer under test."""

    def __init__(self, queue_size: int, timeout_s: float) -> None:
        parent = Parent(1, queue_size)
        self.limiter = parent.limiter()
        self.timeout_s = timeout_s
        self.close = parent.close
        self.body = Body()
        self.raises: BaseException | None = None
        self.inside: Callable[[], object] = lambda: None
        self.ended: list[Exchange] = []
        self.started: list[tuple[str, dict[str, str]]] = []
        self.application: WSGIApplication = with_exchange(self._application, self.ended.append)

    def _application(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange: Exchange = environ[ENVIRON_KEY]
        self.inflight = weakref.proxy(exchange)
        exchange.admit(self.limiter, self.timeout_s)
        assert self.limiter.snapshot() == (1, 0)
        self.inside()
        if self.raises is not None:
            raise self.raises
        headers = list(HEADERS)
        start_response("200 OK", headers)
        assert headers == HEADERS, "the application's own list is left alone"
        return self.body

    def call(self, **environ: Any) -> Any:
        """Call it as a server does, up to the response body."""

        def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Callable[[bytes], object]:
            self.started.append((status, dict(headers)))
            return lambda data: None

        return self.application(environ, start_response)

    def given_back(self) -> bool:
        """Whether all is back: the permit is free, and free only once."""
        return self.limiter.snapshot() == (0, 0)

    @property
    def statuses(self) -> list[int]:
        """The statuses that on_end was told, in order."""
        return [exchange.status for exchange in self.ended]


@pytest.fixture
def make_stage() -> Iterator[Callable[..., Stage]]:
    """Makes stages, and closes them at the end of the test."""
    with ExitStack() as stack:

        def make(queue_size: int = 0, timeout_s: float = 20) -> Stage:
            stage = Stage(queue_size, timeout_s)
            stack.callback(stage.close)
            return stage

        yield make


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """A stage without a queue."""
    return make_stage()


def read_to_the_end(stage: Stage) -> None:
    """A server's usual way."""
    answer = stage.call()
    assert b"".join(answer) == b"ab"
    assert not stage.given_back(), "the permit is held until the last byte is out"
    assert stage.ended == []
    answer.close()


def close_delivered(stage: Stage) -> None:
    """The event that ends the stream was written, and the client left before the body's end."""
    answer = stage.call()
    assert next(iter(answer)) == b"a"
    stage.inflight.deliver()
    answer.close()


def close_twice(stage: Stage) -> None:
    """A server that is not sure."""
    answer = stage.call()
    list(answer)
    answer.close()
    answer.close()


def close_unread(stage: Stage) -> None:
    """A server that does not iterate: the client is gone, or asked for no body."""
    stage.call().close()


def close_half_read(stage: Stage) -> None:
    """A server whose client left during the answer."""
    answer = stage.call()
    assert next(iter(answer)) == b"a"
    answer.close()


def break_in_iteration(stage: Stage) -> None:
    """A body that raises after its first bytes; servers close it all the same."""
    stage.body = Body(raises=Broken())
    answer = stage.call()
    with pytest.raises(Broken):
        list(answer)
    answer.close()


def break_in_close(stage: Stage) -> None:
    """A body whose own close raises."""
    stage.body.close_raises = Broken()
    answer = stage.call()
    list(answer)
    with pytest.raises(Broken):
        answer.close()


def answer_nothing(stage: Stage) -> None:
    """An empty body without a close of its own, as Falcon answers HEAD."""
    stage.body = []  # type: ignore[assignment]
    answer = stage.call()
    assert list(answer) == []
    answer.close()


def raising(error: BaseException) -> Callable[[Stage], None]:
    """An application that raises instead of answering: no server can close anything."""

    def ending(stage: Stage) -> None:
        stage.raises = error
        with pytest.raises(type(error)) as caught:
            stage.call()
        assert caught.value is error

    return ending


def write(stage: Stage, raises: BaseException | None = None) -> None:
    """What a server does, which closes the body in a `finally`. `raises`: what its write to the client raises."""
    answer = stage.call()
    try:
        for _ in answer:
            if raises is not None:
                raise raises
    finally:
        answer.close()


def failing_write(error: BaseException) -> Callable[[Stage], None]:
    """A server whose write to the client fails."""

    def ending(stage: Stage) -> None:
        with pytest.raises(type(error)):
            write(stage, error)

    return ending


def stop_in_iteration(stage: Stage) -> None:
    """The greenlet is stopped while the next piece of the body is waited for."""
    stage.body = Body(raises=gevent.GreenletExit())
    with pytest.raises(gevent.GreenletExit):
        write(stage)


ENDINGS: dict[str, tuple[Callable[[Stage], None], int]] = {
    "read to the end": (read_to_the_end, 200),
    "closed twice": (close_twice, 200),
    "closed unread": (close_unread, 499),
    "closed half read": (close_half_read, 499),
    "closed when delivered": (close_delivered, 200),
    "iteration raises": (break_in_iteration, 500),
    "close raises": (break_in_close, 200),
    "nothing to read": (answer_nothing, 200),
    "application raises": (raising(Broken()), 500),
    "application exits": (raising(SystemExit()), 500),
    "greenlet is stopped": (raising(gevent.GreenletExit()), 503),
    "greenlet is stopped in the body": (stop_in_iteration, 503),
    "greenlet is stopped in a write": (failing_write(gevent.GreenletExit()), 503),
    "client does not read": (failing_write(TimeoutError()), 499),
    "client's kernel is gone": (failing_write(TimeoutError(errno.ETIMEDOUT, "")), 499),
    "client resets": (failing_write(ConnectionResetError()), 499),
    "client is gone": (raising(ClientGone()), 499),
}


ERRORS = {
    **dict.fromkeys([name for name in ENDINGS if name.startswith("greenlet is stopped")], "cut_off"),
    "client does not read": "response_stalled",
}
"""Of the endings that have one of their own."""


@pytest.mark.parametrize("name", ENDINGS)
def test_everything_comes_back_exactly_once(name: str, stage: Stage) -> None:
    """However an exchange ends, its permit is back, on_end ran once, and with the status that the client saw."""
    ending, status = ENDINGS[name]
    ending(stage)
    assert stage.given_back()
    assert stage.statuses == [status]
    assert stage.ended[0].error == ERRORS.get(name)
    assert getattr(stage.body, "closed", 1) == (0 if stage.raises else 1)
    permit = acquire(stage.limiter)
    with pytest.raises(LimitReached):  # the only permit is one permit still
        acquire(stage.limiter)
    permit.release()


def test_exchange_without_a_permit_gives_none_back(stage: Stage) -> None:
    """A refused request ends like any other, says why it was refused, and takes nobody's permit away."""
    held = acquire(stage.limiter)
    with pytest.raises(LimitReached):
        stage.call()
    assert stage.limiter.snapshot() == (1, 0)
    assert [(exchange.rejection, exchange.permit) for exchange in stage.ended] == [("limit_reached", None)]
    held.release()


@pytest.mark.parametrize("queue_size", [0, 1])
def test_refused_request_leaves_its_model_at_once(queue_size: int, make_stage: Callable[..., Stage]) -> None:
    """The model is not shown with a request over the cap for as long as a client takes to read its 429, and gets its
    place back once."""
    counted = [0]

    class Limit:
        def acquire(self) -> Callable[[], None]:
            counted[0] += 1

            def give_back() -> None:
                counted[0] -= 1

            return give_back

    stage = make_stage(queue_size)
    held = acquire(stage.limiter)
    exchange = Exchange({})
    with pytest.raises(LimitReached if queue_size == 0 else QueueTimeout):
        exchange.admit(stage.limiter, 0.01, cast(ModelLimit, Limit()))
    assert counted == [0]
    exchange.release()
    assert counted == [0]
    held.release()


def test_waiting_in_the_queue_is_timed_and_may_end_in_refusal(make_stage: Callable[..., Stage]) -> None:
    """The time before a refusal counts as waiting, not as the model's."""
    stage = make_stage(queue_size=1, timeout_s=0.02)
    held = acquire(stage.limiter)
    with pytest.raises(QueueTimeout):
        stage.call()
    (exchange,) = stage.ended
    assert exchange.rejection == "queue_timeout"
    assert exchange.queue_s >= 0.02
    assert exchange.model_s == 0
    held.release()
    assert stage.given_back()


def serve(stage: Stage, sock: socket.socket) -> "gevent.Greenlet[[], Any]":
    """A server's greenlet, for a client on this connection."""

    def one() -> list[bytes]:
        with closing(ClientConnection(sock, 20)) as connection:
            return list(stage.call(**{"gunicorn.socket": connection}))

    return gevent.spawn(one)


@pytest.mark.parametrize("leave", [socket.socket.close, lambda client: client.shutdown(socket.SHUT_WR)])
def test_client_that_leaves_inside_the_model_frees_its_permit(
    leave: Callable[[socket.socket], object], stage: Stage
) -> None:
    """The model is interrupted by ClientGone when the client closes, and all is given back at once."""
    entered = Event()

    def stay() -> None:
        entered.set()
        Event().wait(20)

    stage.inside = stay
    server, client = socket.socketpair()
    with server, client:
        greenlet = serve(stage, server)
        assert entered.wait(20)
        leave(client)
        with pytest.raises(ClientGone):
            greenlet.get(timeout=20)
    assert stage.given_back()
    assert stage.statuses == [499]


def test_client_that_leaves_the_queue_leaves_it(make_stage: Callable[..., Stage]) -> None:
    """A client that closes while its request waits takes no place and no permit along."""
    stage = make_stage(queue_size=1)
    held = acquire(stage.limiter)
    server, client = socket.socketpair()
    with server, client:
        greenlet = serve(stage, server)
        gevent.idle()
        assert stage.limiter.snapshot() == (1, 1)
        client.close()
        with pytest.raises(ClientGone):
            greenlet.get(timeout=20)
    assert stage.limiter.snapshot() == (1, 0)
    assert stage.statuses == [499]
    held.release()
    assert stage.given_back()


def test_client_that_has_everything_may_leave(stage: Stage) -> None:
    """Once the response is delivered nothing is thrown into what remains."""
    delivered, end = Event(), Event()

    def pieces() -> Iterator[bytes]:
        yield b"a"
        stage.inflight.deliver()
        delivered.set()
        assert end.wait(20)

    stage.body = Body(pieces())
    server, client = socket.socketpair()
    with server, client, server.dup() as observer:
        greenlet = serve(stage, server)
        assert delivered.wait(20)
        client.close()
        wait_read(observer.fileno())  # the hub has seen that it left
        gevent.idle()
        end.set()
        assert greenlet.get(timeout=20) == [b"a"]


@pytest.mark.parametrize("raises", [None, Broken()])
def test_nothing_is_thrown_after_the_end(raises: Exception | None, stage: Stage) -> None:
    """A client that leaves after its exchange ended interrupts nobody: the greenlet may serve somebody else by then."""
    stage.raises = raises
    server, client = socket.socketpair()
    connection = ClientConnection(server, 20)

    def serve_and_go_on() -> str:
        try:
            answer = stage.call(**{"gunicorn.socket": connection})
            list(answer)
            answer.close()
        except Broken:
            pass
        client.close()
        wait_read(connection.fileno(), timeout=20)  # the hub has seen the close when this returns
        gevent.idle()
        return "undisturbed"

    with closing(connection), client:
        assert gevent.spawn(serve_and_go_on).get(timeout=20) == "undisturbed"
    assert stage.given_back()


@pytest.mark.parametrize("raises", [None, Broken()])
def test_what_has_ended_is_no_garbage(raises: Exception | None, stage: Stage) -> None:
    """An exchange and its environ are freed without the collector, which would have every request to look through."""
    stage.raises = raises
    gc.collect()
    gc.disable()
    try:
        with suppress(Broken):
            read_to_the_end(stage)
        if raises is not None:
            raises.__traceback__ = None  # it holds the frames that it passed through
        ended = weakref.ref(stage.ended.pop())
        assert ended() is None
    finally:
        gc.enable()


def test_state_is_told(stage: Stage) -> None:
    """The representation of an exchange names the request, its status, and what it holds, while it runs and after."""
    seen: list[str] = []
    stage.inside = lambda: seen.append(stage.inflight.__repr__())
    response = stage.call(REQUEST_METHOD="POST", PATH_INFO="/infer", HTTP_X_REQUEST_ID="id-1")
    assert "id-1 POST /infer 500, 0 held, permit <" in seen[0]
    assert "in progress" in repr(response)
    response.close()
    assert "ended" in repr(response)
    assert "id-1 POST /infer 499" in repr(stage.ended[0])


@pytest.mark.parametrize("given", ["a", "0" * 128, "req-1.2:3/4+5=6@7~8_9", "2f1c4b86-7b9e-4d0a-9a3b-1f0f6f6f2d10"])
def test_request_id_of_the_client_is_kept(given: str, stage: Stage) -> None:
    """A well-formed X-Request-Id comes back as it came, so that a caller finds its request in the logs."""
    stage.call(HTTP_X_REQUEST_ID=given).close()
    assert stage.started[0][1]["X-Request-Id"] == stage.ended[0].request_id == given


@pytest.mark.parametrize("given", [None, "", " ", "a b", "a\n", "a\r\nX: y", "ü", "a,b", '"a"', "<a>", "0" * 129])
def test_request_id_is_made_up_instead(given: str | None, stage: Stage) -> None:
    """Without a well-formed id, each request gets one of its own: nothing of a client's else gets into logs."""
    for _ in range(2):
        stage.call(**({} if given is None else {"HTTP_X_REQUEST_ID": given})).close()
    ids = [headers["X-Request-Id"] for _, headers in stage.started]
    assert ids == [exchange.request_id for exchange in stage.ended]
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids)
    assert len(set(ids)) == 2


def test_server_timing_holds_the_parts_and_the_sum() -> None:
    """Server-Timing says milliseconds in the queue, in the model and in all, as W3C's grammar has it."""
    try:
        native.stop_clock(10**9)
        exchange = Exchange({})
        exchange.queue_s, exchange.model_s = 0.0015, 2.25
        native.stop_clock(4 * 10**9)
        assert exchange.timing() == "queue;dur=1.500, model;dur=2250.000, total;dur=3000.000"
    finally:
        native.stop_clock(-1)


def test_every_answer_has_id_and_timing(stage: Stage) -> None:
    """The layer adds its two headers to those of the application, and leaves the status alone."""
    stage.call(HTTP_X_REQUEST_ID="a").close()
    ((status, headers),) = stage.started
    assert status == "200 OK"
    assert list(headers) == ["Content-Type", "X-Request-Id", "Server-Timing"]
    assert headers["Server-Timing"].startswith("queue;dur=0.")
