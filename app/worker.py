"""The gunicorn worker: gevent, with a drain that neither waits for idle connections nor breaks busy ones.

What differs from gunicorn's own gevent worker, which parses requests and writes responses here too:
- **Drain.** A connection is idle while it waits for the first byte of a request, busy from there to the last byte of
  the answer. When the worker stops, idle connections end at once and busy ones after their answer, which then says
  `Connection: close`. The worker is gone as soon as nothing is busy.
- **Who accepts meanwhile.** A worker that makes way for another stops accepting at once. When the whole server drains,
  workers with requests left go on accepting, so that `/readyz` can say 503; new work is refused by the application.
- **Unread bodies.** A body the application did not read (413) is not waited for: the answer says `Connection: close`
  and what still arrives is discarded for a moment, so that the client gets to read the answer.
- **`Expect: 100-continue`** is answered when the application first reads, so a refused body need not be sent.

Handlers that are still busy when `graceful_timeout` ends are stopped, which gives back what they hold.
"""

import errno
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import wait_read
from gunicorn import http, util
from gunicorn.http import wsgi
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from app.errors import ClientGone

_HEARTBEAT_S = 1.0
_FIRST_REQUEST_GRACE_S = 0.5  # a drain lets a new connection, whose request may be under way, speak this long
_HEAD_TIMEOUT_S = 30.0  # for a request's head to arrive whole, where KEEPALIVE_S is 0
_LINGER_S = 1.0
_LINGER_BYTES = 1 << 20
_READ_CHUNK = 1 << 16


class _Connection:
    """A client's connection while the worker holds it."""

    __slots__ = ("busy", "served", "sock")

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.busy = False
        self.served = False

    def end_if_idle(self) -> None:
        """Wake the reader with an end of file. Bytes that had arrived are still read and answered."""
        if not self.busy:
            try:
                self.sock.shutdown(socket.SHUT_RD)
            except OSError:
                pass  # the client was faster


class RouterWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module's opening lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_drains: Callable[[], bool] = lambda: False
        """Whether the whole server shuts down, not just this worker; set by a hook."""
        self.every_second: Callable[[], object] = lambda: None
        """Upkeep to be done with every heartbeat; set by a hook."""
        self._connections: set[_Connection] = set()
        self._ended = Event()

    def patch(self) -> None:
        """gunicorn.conf.py has patched the standard library already; wrap the listeners, that's all."""
        self.sockets = [
            gevent.socket.socket(s.FAMILY, socket.SOCK_STREAM, fileno=s.sock.detach()) for s in self.sockets
        ]

    def run(self) -> None:
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive and not self.server_drains():
            self._beat()
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
            server.max_accept = 1  # leave the next connection to the other workers
        server.start()
        return server

    def _beat(self) -> None:
        self.notify()
        self.every_second()

    def _sleep_until_signal(self, seconds: float) -> None:
        """gunicorn has Python write a byte to PIPE for every signal."""
        try:
            wait_read(self.PIPE[0], timeout=seconds, timeout_exc=TimeoutError())
            os.read(self.PIPE[0], 4096)
        except (TimeoutError, BlockingIOError):
            pass

    def _drain(self, servers: list[StreamServer]) -> None:
        deadline = time.monotonic() + self.cfg.graceful_timeout
        grace_ends = time.monotonic() + _FIRST_REQUEST_GRACE_S
        if not self.server_drains():
            _close(servers)
        while time.monotonic() < deadline:
            in_grace = time.monotonic() < grace_ends
            for connection in list(self._connections):
                if connection.served or not in_grace:
                    connection.end_if_idle()
            # A server that drains as a whole has idle connections of probes, new ones too: they keep no worker alive.
            if not any(c.busy or not (c.served or self.server_drains()) for c in self._connections):
                break
            self._ended.clear()
            self._ended.wait(0.05 if in_grace else 0.5)
            self.notify()
        _close(servers)
        self._finish_accepted(deadline)
        busy = sum(connection.busy for connection in self._connections)
        if busy:
            self.log.warning("graceful timeout: %d requests are cut off (pid %s)", busy, self.pid)
            for server in servers:
                server.stop(timeout=1)

    def _finish_accepted(self, deadline: float) -> None:
        """What was accepted while the last busy connection ended is answered too; bounded like the drain itself."""
        grace_ends = min(deadline, time.monotonic() + _FIRST_REQUEST_GRACE_S)
        while self._connections and time.monotonic() < (deadline if self._any_busy() else grace_ends):
            for connection in list(self._connections):
                if connection.served:
                    connection.end_if_idle()
            self._ended.clear()
            self._ended.wait(0.05)
            self.notify()

    def _any_busy(self) -> bool:
        return any(connection.busy for connection in self._connections)

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
                with gevent.Timeout(self.cfg.keepalive or _HEAD_TIMEOUT_S, False):
                    request = next(parser)
                if request is None or not self.handle_request(listener, request, client, addr):
                    break
                connection.served, connection.busy = True, False
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
        elif connection.served and not self.alive:
            return False
        elif not getattr(connection.sock, "pending", int)():  # nothing decrypted and not yet read either
            try:
                wait_read(connection.sock.fileno(), timeout=self.cfg.keepalive or None, timeout_exc=TimeoutError())
            except TimeoutError:
                return False
        connection.busy = True
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
        if not self.headers_sent and not (self._worker.alive and self.cfg.keepalive and self.request_body.finished()):
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
    with gevent.Timeout(_LINGER_S, False):
        sock.shutdown(socket.SHUT_WR)
        while discarded < _LINGER_BYTES and (data := sock.recv(_READ_CHUNK)):
            discarded += len(data)
