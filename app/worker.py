"""The gunicorn worker: gevent, with a drain that neither waits for idle connections nor breaks busy ones.

What differs from gunicorn's own gevent worker, which parses requests and writes responses here too:
- **Drain.** A connection is idle while it waits for the first byte of a request, busy from there to the last byte of
  the answer. When the worker stops, busy connections end after their answer, which then says `Connection: close`, and
  idle ones at once, except that one opened or answered within the last half second, whose next request may be on its
  way, has the rest of that time to speak. The worker is gone as soon as no connection is left that may be waited for.
- **Who accepts meanwhile.** A worker that makes way for another stops accepting at once. When the whole server drains,
  workers with requests left go on accepting, so that `/readyz` can say 503; new work is refused by the application.
- **Turns.** In one turn of the event loop only so many connections that were served before may begin another request
  (`turnstile.py`). A connection's first request never waits there: it may be a probe.
- **Unread bodies.** A body the application did not read (413) is not waited for: the answer says `Connection: close`
  and what still arrives is discarded for a moment, so that the client gets to read the answer.
- **`Expect: 100-continue`** is answered when the application first reads, so a refused body need not be sent.

Handlers that are still busy when `graceful_timeout` ends are stopped, which gives back what they hold.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import wait_read
from gunicorn import http, util
from gunicorn.http import wsgi
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from app.errors import ClientGone
from app.turnstile import Turnstile

_poll = get_original("select", "poll")

_HEARTBEAT_S = 1.0
_DRAIN_STEP_S = 0.05
_ACCEPT_A_TURN = 16  # more than can begin, or probes would wait in the kernel; few, to leave some to other workers
_GRACE_S = 0.5  # a connection opened or answered less than this ago may have a request on its way
_HEAD_TIMEOUT_S = 30.0  # for a request's head to arrive whole, where KEEPALIVE_S is 0
_LINGER_S = 1.0
_LINGER_BYTES = 1 << 20
_READ_CHUNK = 1 << 16


class _Connection:
    """A client's connection while the worker holds it."""

    __slots__ = ("busy", "quiet_since", "served", "sock")

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.busy = False
        self.served = False
        self.quiet_since = time.monotonic()

    def answered(self) -> None:
        """The connection is idle again."""
        self.busy, self.served, self.quiet_since = False, True, time.monotonic()

    def may_be_spoken_on(self) -> bool:
        """Whether a request is in progress or may be on its way."""
        return self.busy or time.monotonic() - self.quiet_since < _GRACE_S

    def end(self) -> None:
        """End an idle connection, unless a request has just arrived: that one is read and answered."""
        arrival = _poll()
        try:
            arrival.register(self.sock.fileno(), select.POLLIN)
            if not arrival.poll(0):
                self.sock.shutdown(socket.SHUT_RDWR)  # wakes the reader, which closes
        except (OSError, ValueError):
            pass  # the client was faster


class RouterWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module's opening lines."""

    alive: bool
    sockets: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_drains: Callable[[], bool] = lambda: False
        """Whether the whole server shuts down, not just this worker; set by a hook."""
        self.upkeep: Callable[[], object] = lambda: None
        """Upkeep to be done with every heartbeat; set by a hook."""
        self._connections: set[_Connection] = set()
        self._ended = Event()
        self._turnstile: Turnstile

    def patch(self) -> None:
        """gunicorn.conf.py has patched the standard library already; wrap the listeners, that's all."""
        self.sockets = [
            gevent.socket.socket(s.FAMILY, socket.SOCK_STREAM, fileno=s.sock.detach()) for s in self.sockets
        ]

    def run(self) -> None:
        self._turnstile = Turnstile()
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive and not self.server_drains():  # the latter for a SIGTERM that came too early to be heard
            self.notify()
            self.upkeep()
            self._sleep_until_signal(_HEARTBEAT_S)
        self.alive = False
        self._drain(servers)

    def _serve(self, listener: Any) -> StreamServer:
        """Accept from one listener. Each has a pool of its own: a full one doesn't keep the other's probes out."""
        listener.setblocking(1)
        tls = {"ssl_context": ssl_context(self.cfg)} if self.cfg.is_ssl else {}
        server = StreamServer(
            listener, handle=partial(self.handle, listener.getsockname()), spawn=Pool(self.worker_connections), **tls
        )
        if self.cfg.workers > 1:
            server.max_accept = _ACCEPT_A_TURN
        server.start()
        return server

    def _sleep_until_signal(self, seconds: float) -> None:
        """gunicorn has Python write a byte to PIPE for every signal."""
        try:
            wait_read(self.PIPE[0], timeout=seconds, timeout_exc=TimeoutError())
            os.read(self.PIPE[0], 4096)
        except (TimeoutError, BlockingIOError):
            pass

    def _drain(self, servers: list[StreamServer]) -> None:
        """Wait for the requests in progress, at most `graceful_timeout`; then cut off what is left."""
        deadline = time.monotonic() + self.cfg.graceful_timeout
        if self.server_drains():
            # Go on accepting for probes; what they keep open doesn't keep this worker alive, requests do.
            self._wait_while(deadline, lambda connection: connection.busy)
        _close(servers)
        self._wait_while(deadline, _Connection.may_be_spoken_on)
        busy = sum(connection.busy for connection in self._connections)
        if busy:
            self.log.warning("graceful timeout: %d requests are cut off (pid %s)", busy, self.pid)
            for server in servers:
                server.stop(timeout=1)

    def _wait_while(self, deadline: float, holds: Callable[[_Connection], bool]) -> None:
        """Until `holds` is true of no connection any more, ending those that are idle."""
        while any(holds(connection) for connection in self._connections) and time.monotonic() < deadline:
            for connection in list(self._connections):
                if not connection.may_be_spoken_on():
                    connection.end()
            self._ended.clear()
            self._ended.wait(_DRAIN_STEP_S)
            self.notify()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """One connection, from accept to close. `listener` is the address it came in at: the socket may be closed."""
        client.setblocking(1)
        connection = _Connection(client)
        self._connections.add(connection)
        request = None
        try:
            parser = http.get_parser(self.cfg, client, addr)
            while self._wait_for_request(connection, parser):
                request = None
                with gevent.Timeout(self.cfg.keepalive or _HEAD_TIMEOUT_S, False):  # type: ignore[arg-type]  # False: end silently
                    request = next(parser)
                if request is None or not self.handle_request(listener, request, client, addr):
                    break
                connection.answered()
        except (StopIteration, http.errors.NoMoreData, ClientGone, gevent.GreenletExit):
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                self.log.exception("Socket error processing request.")
        except Exception as error:
            self.handle_error(request, client, addr, error)
        finally:
            util.close(client)
            self._connections.discard(connection)
            self._ended.set()

    def _wait_for_request(self, connection: _Connection, parser: Any) -> bool:
        """Idle until the first byte of a request, or its end. Answers whether to read a request."""
        buffered = parser.unreader.take_buffered()
        if buffered:
            parser.unreader.unread(buffered)  # a pipelined request
        elif not getattr(connection.sock, "pending", int)():  # nothing decrypted and not yet read either
            try:
                wait_read(connection.sock.fileno(), timeout=self.cfg.keepalive or None, timeout_exc=TimeoutError())
            except TimeoutError:
                return False
        connection.busy = True
        if connection.served:
            self._turnstile.pass_through()
        return True

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        """One request and its answer; answers whether the connection can take another."""
        environ: dict[str, Any] = {}
        response = None
        continue_first, req._expected_100_continue = req._expected_100_continue, False
        try:
            self.cfg.pre_request(self, req)
            response, environ = wsgi.create(req, sock, addr, listener_name, self.cfg, _Response, (self,))
            body = environ["wsgi.input"] = _RequestBody(req, sock, continue_first)
            response.request_body = body
            environ["wsgi.multithread"] = True
            self.nr += 1
            if self.nr >= self.max_requests and self.alive:
                self.log.info("Autorestarting worker after current request.")
                self.alive = False
                os.write(self.PIPE[1], b"\0")  # wake run()
            chunks = self.wsgi(environ, response.start_response)
            try:
                for chunk in chunks:
                    response.write(chunk)
                response.close()
            finally:
                if hasattr(chunks, "close"):
                    chunks.close()
        except OSError:
            raise  # the client went away: handle() knows which kinds to pass over
        except Exception:
            if response is not None and response.headers_sent:
                self.log.exception("Error in mid-response; the connection is cut")
                return False
            raise
        finally:
            try:
                self.cfg.post_request(self, req, environ, response)
            except Exception:
                self.log.exception("Exception in post_request hook")
        if not body.finished():
            _linger(sock)
        return not response.should_close()


class _RequestBody:
    """`wsgi.input`: gunicorn's reader, which sends `100 Continue` before it first waits for the client."""

    def __init__(self, req: Any, sock: Any, continue_first: bool) -> None:
        self._body = req.body
        self._sock = sock
        self._continue_first = continue_first
        self._ended = False

    def read(self, size: int | None = None) -> bytes:
        if self._continue_first:
            self._continue_first = False
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data: bytes = self._body.read(size)
        return data

    def finished(self) -> bool:
        """Whether nothing of the body is left to read, so that the next request can follow."""
        reader = self._body.reader
        left = reader.length if hasattr(reader, "length") else getattr(reader, "parser", None)
        return not left and not self._body.failed


class _Response(wsgi.Response):  # type: ignore[misc]
    """gunicorn's response, which decides when it sends its head whether the connection will close."""

    def __init__(self, req: Any, sock: Any, cfg: Any, worker: RouterWorker) -> None:
        super().__init__(req, sock, cfg)
        self._worker = worker
        self.request_body: _RequestBody

    def send_headers(self) -> None:
        if not self.headers_sent:
            worker = self._worker
            if not (worker.alive and self.cfg.keepalive and self.request_body.finished()) or worker.server_drains():
                self.force_close()
        super().send_headers()


def _close(servers: list[StreamServer]) -> None:
    """Accept no more, and let the greenlets of what was just accepted enter themselves as connections."""
    for server in servers:
        server.close()
    gevent.sleep(0)


def _linger(sock: Any) -> None:
    """Discard what a client still sends of a body that was refused: closing over it would reset the connection and
    with it the answer on its way (RFC 9112 section 9.6)."""
    discarded = 0
    with gevent.Timeout(_LINGER_S, False):  # type: ignore[arg-type]  # False: end silently
        sock.shutdown(socket.SHUT_WR)
        while discarded < _LINGER_BYTES and (data := sock.recv(_READ_CHUNK)):
            discarded += len(data)
