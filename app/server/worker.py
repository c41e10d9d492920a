"""The gunicorn worker: gevent, with a drain that neither waits for idle connections nor breaks busy ones.

What differs from gunicorn's own gevent worker (its parser and response serve every request here that is unusual, but
for HTTP/2 and h2c):
- **The ordinary request** is read and answered by `fast_path.py`.
- **Drain.** When the worker stops, connections that are served end after their answer, which then says
  `Connection: close`, and idle ones at once. Two kinds are given a moment first: one opened or answered within the last
  half second, whose next request may be on its way, and one on which a request has begun to arrive (`connection.py`).
  The worker is gone as soon as no connection is left that is worth waiting for.
- **Who accepts meanwhile.** A worker that makes way for another stops accepting at once. When the whole server drains,
  workers with requests left go on accepting, so that `/readyz` can say 503; new work is refused by the application.
- **Turns.** In one turn of the event loop only so many requests may begin (`turnstile.py`). GET and HEAD, the methods
  of probes and scrapes, don't wait there.

Handlers that are still busy when `graceful_timeout` ends are stopped, which gives back what they hold.
"""

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import wait_read
from gunicorn import http
from gunicorn.http import wsgi
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from app.errors import ClientGone, RouterError
from app.server.client_connection import Connection, ErrorStatus, RequestBody, Response, State
from app.server.fast_path import Answer, FastPath, Request
from app.server.pacing import RequestPacer

_HEARTBEAT_S = 1.0
_DRAIN_STEP_S = 0.05
_METHODS_OF_PROBES = ("GET", "HEAD")
_ACCEPT_A_TURN = 16  # more than can begin, or probes would wait in the kernel; few, to leave some to other workers


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
        self.stall_timeout_s = 30.0
        """How long a client may neither send nor take anything while it should; set by a hook."""
        self.upload_timeout_s = 300.0
        """How long a body may take to arrive; set by a hook."""
        self._connections: set[Connection] = set()
        self._ended = Event()
        self._turnstile: RequestPacer
        self._fast_path: FastPath
        self._tls: ssl.SSLContext | None = None
        self._idle_s = 0.0

    def patch(self) -> None:
        """gunicorn.conf.py has patched the standard library already; wrap the listeners, that's all."""
        self.sockets = [
            gevent.socket.socket(s.FAMILY, socket.SOCK_STREAM, fileno=s.sock.detach()) for s in self.sockets
        ]

    def run(self) -> None:
        self._turnstile = RequestPacer()
        self._fast_path = FastPath(self.cfg)
        self._idle_s = float(self.cfg.keepalive or self.stall_timeout_s)
        self._tls = ssl_context(self.cfg) if self.cfg.is_ssl else None
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
        handle = partial(self.handle, listener.getsockname())
        server = StreamServer(listener, handle=handle, spawn=Pool(self.worker_connections))
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
            self._wait_while(deadline, Connection.at_work)
        _close(servers)
        self._wait_while(deadline, Connection.may_be_spoken_on)
        busy = sum(connection.at_work() for connection in self._connections)
        if busy:
            self.log.warning("graceful timeout: %d requests are cut off (pid %s)", busy, self.pid)
            for server in servers:
                server.stop(timeout=1)

    def _wait_while(self, deadline: float, holds: Callable[[Connection], bool]) -> None:
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
        if self._tls is not None:
            client = self._shake_hands(client, self._tls)
            if client is None:
                return
        connection = Connection(client, self.stall_timeout_s)
        self._connections.add(connection)
        base = self._fast_path.environ_of(connection, listener, addr)
        rest, keep = b"", True
        try:
            while keep and (data := rest or connection.first_bytes(self._idle_s)):
                request = None if base is None else self._fast_path.parse(connection, base, data)
                if request is None:
                    keep, rest = self._serve_unusual(connection, data, listener, addr)
                else:
                    keep, rest = self._serve_ordinary(connection, request)
                connection.enter(State.IDLE)
        except (StopIteration, TimeoutError, ssl.SSLError, http.errors.NoMoreData, ClientGone, gevent.GreenletExit):
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                self.log.exception("Socket error processing request.")
        except Exception as error:
            self.handle_error(None, connection, addr, error)
        finally:
            connection.close()
            self._connections.discard(connection)
            self._ended.set()

    def _shake_hands(self, client: Any, tls: ssl.SSLContext) -> Any:
        """The client's connection under TLS; None if that fails, or takes too long."""
        client = tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        try:
            with gevent.Timeout(self.stall_timeout_s, TimeoutError):  # however steadily it trickles
                client.do_handshake()
        except OSError as error:  # TimeoutError and ssl.SSLError are
            self.log.debug("TLS handshake failed: %s", error)
            client.close()
            return None
        return client

    def _serve_ordinary(self, connection: Connection, request: Request) -> tuple[bool, bytes]:
        """An ordinary request, answered; answers whether to keep the connection, and what came after the request."""
        connection.enter(State.SERVING)  # before it waits: a drain would take it for idle
        if request.environ["REQUEST_METHOD"] not in _METHODS_OF_PROBES:
            self._turnstile.wait_for_turn()
        connection.allow(self.upload_timeout_s)
        self._count_request()
        answer = Answer(connection, request, self._stops, self._fast_path)
        try:
            answer.send(self.wsgi)
        except OSError:
            raise  # the client went away: handle() knows which kinds to pass over
        except Exception as error:
            if not answer.headers_sent:
                raise
            self._cut_off(answer, connection, error)
            return False, b""
        if not request.body.finished():
            connection.linger()
        return answer.keep, request.body.rest

    def _serve_unusual(self, connection: Connection, data: bytes, listener: Any, addr: Any) -> tuple[bool, bytes]:
        """The same for any other request, by gunicorn's parser and response."""
        if connection.parser is None:
            connection.parser = http.get_parser(self.cfg, connection, addr)
        parser = connection.parser
        parser.unreader.unread(data)
        connection.enter(State.READING)
        connection.allow(self.stall_timeout_s)
        request = next(parser)
        # A PROXY line comes once, before the first request, and speaks of the whole connection.
        connection.proxied = request.proxy_protocol_info = request.proxy_protocol_info or connection.proxied
        connection.enter(State.SERVING)
        if request.method not in _METHODS_OF_PROBES:
            self._turnstile.wait_for_turn()
        try:
            keep = self.handle_request(listener, request, connection, addr)
        except (OSError, ClientGone, gevent.GreenletExit):
            raise
        except Exception as error:
            self.handle_error(request, connection, addr, error)
            return False, b""
        return keep and parser.finish_body(), parser.unreader.take_buffered()

    def _count_request(self) -> None:
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            os.write(self.PIPE[1], b"\0")  # wake run()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        """One request and its answer, on the Connection `sock`; answers whether it can take another."""
        sock.allow(self.upload_timeout_s)
        environ: dict[str, Any] = {}
        response = None
        continue_first, req._expected_100_continue = req._expected_100_continue, False
        try:
            self.cfg.pre_request(self, req)
            response, environ = wsgi.create(req, sock, addr, listener_name, self.cfg, Response, (self._stops,))
            body = environ["wsgi.input"] = response.request_body = RequestBody(req, sock, continue_first)
            environ["wsgi.multithread"] = True
            self._count_request()
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
        except Exception as error:
            if response is None or not response.headers_sent:
                raise
            self._cut_off(response, sock, error)
            return False
        finally:
            try:
                self.cfg.post_request(self, req, environ, response)
            except Exception:
                self.log.exception("Exception in post_request hook")
        if not body.finished():
            sock.linger()
        return not response.should_close()

    def _cut_off(self, response: Response | Answer, connection: Connection, error: Exception) -> None:
        """An answer failed after its head was sent: the client must not take the piece for the whole."""
        if isinstance(error, RouterError):
            self.log.warning("an answer broke off; its connection is cut: %s", error)
        else:
            self.log.error("Error in mid-response; the connection is cut", exc_info=error)
        if response.ends_with_connection():
            connection.reset()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """gunicorn logs it and decides the status; the form of the answer is ours."""
        refusal = ErrorStatus()
        super().handle_error(req, refusal, addr, exc)
        status, reason = refusal.status()
        detail = "the router failed; see its log" if status == 500 else f"{reason}: {exc}"
        client.answer_malformed(status, reason, detail)

    def _stops(self) -> bool:
        return not self.alive or self.server_drains()


def _close(servers: list[StreamServer]) -> None:
    """Accept no more, and let the greenlets of what was just accepted enter themselves as connections."""
    for server in servers:
        server.close()
    gevent.sleep(0)
